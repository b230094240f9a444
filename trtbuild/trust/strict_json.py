"""JSON of which there is one reading: what two parsers could understand differently is refused.

Duplicate names, deep nesting, numbers that a double cannot hold, NaN, and unpaired surrogates
are legal somewhere and mean different things to different readers.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn, TypeVar

import msgspec

from trtbuild.canonical import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

MAX_DEPTH = 32
MAX_INTEGER = 2**53 - 1
"""The largest that every reader of JSON keeps exactly (RFC 8259, section 6)."""

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class StrictError(ValueError):
    """The bytes have no reading, or more than one."""


def parse(data: bytes) -> object:
    """Return the plain value of JSON in UTF-8.

    Raises:
        StrictError: the message says what is wrong.
    """
    try:
        text = data.decode("utf-8")
        _check_depth(text)
        value: object = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        encode(value)  # refuses unpaired surrogates
    except StrictError:
        raise
    except ValueError as error:
        raise StrictError(str(error)) from error
    return value


def read(value: object, shape: type[T]) -> T:
    """Return a plain value as ``shape``; unknown and missing fields are refused.

    A field that has a default must be there all the same: nothing is filled in.

    Raises:
        StrictError: the value is of another shape.
    """
    try:
        found = msgspec.convert(value, shape, strict=True)
    except msgspec.ValidationError as error:
        raise StrictError(str(error)) from error
    if encode(found) != encode(value):
        message = f"a field of {shape.__name__} is missing, or spelled in another way"
        raise StrictError(message)
    return found


def decode(data: bytes, shape: type[T]) -> T:
    """Return the value of ``shape`` in ``data``; raises as :func:`parse` and :func:`read`."""
    return read(parse(data), shape)


def _check_depth(text: str) -> None:
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise StrictError(message)


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            message = f"the name {name[:64]!r} occurs twice in one object"
            raise StrictError(message)
        found[name] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > len(str(-MAX_INTEGER)) or abs(int(digits)) > MAX_INTEGER:
        message = f"the number {digits[:24]} is beyond 2^53 - 1"
        raise StrictError(message)
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if value - value != 0.0:
        message = f"the number {digits[:24]} is infinite"
        raise StrictError(message)
    return value


def _refuse_constant(word: str) -> NoReturn:
    message = f"{word} is no JSON"
    raise StrictError(message)
