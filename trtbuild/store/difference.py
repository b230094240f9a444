"""Why two keys differ: their pre-images, field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from trtbuild.canonical import encode
from trtbuild.engine import Value

if TYPE_CHECKING:
    from trtbuild.store.record import Record

ABSENT = "absent"
"""What stands for the value of a field that one side lacks; no JSON text is spelled so."""

_PAIR = 2


class Difference(Value, frozen=True, kw_only=True):
    """One field that differs: its place in the pre-image, and both values as JSON text."""

    field: str
    first: str
    second: str


def differences(first: Record, second: Record) -> tuple[Difference, ...]:
    """Return the fields in which the pre-images of two keys differ, sorted by name.

    A list of (name, value) pairs, such as an engine's settings, is compared by name;
    other lists are compared place by place.
    """
    left = _flat(msgspec.json.decode(first.preimage), "")
    right = _flat(msgspec.json.decode(second.preimage), "")
    return tuple(
        Difference(field=name, first=left.get(name, ABSENT), second=right.get(name, ABSENT))
        for name in sorted(left.keys() | right.keys())
        if left.get(name, ABSENT) != right.get(name, ABSENT)
    )


def _flat(value: object, place: str) -> dict[str, str]:
    """Return the leaves below ``value`` by place, as JSON text; empty containers are leaves."""
    children: list[tuple[str, object]] = []
    if isinstance(value, dict):
        children = [
            (f"{place}.{name}" if place else name, each) for name, each in value.items()
        ]
    elif isinstance(value, list) and _is_pairs(value):
        children = [(f"{place}.{name}", each) for name, each in value]
    elif isinstance(value, list):
        children = [(f"{place}[{index}]", each) for index, each in enumerate(value)]
    if not children:
        return {place: encode(value).decode()}
    leaves: dict[str, str] = {}
    for name, child in children:
        leaves |= _flat(child, name)
    return leaves


def _is_pairs(value: list[object]) -> bool:
    """Tell whether this is a list of (name, value) pairs with distinct names."""
    names = [
        each[0]
        for each in value
        if isinstance(each, list) and len(each) == _PAIR and isinstance(each[0], str)
    ]
    return len(set(names)) == len(value)
