"""Which nodes run in which precision: a small TOML file to read, edit and commit.

    [policy]
    default = "int8"

    [policy.nodes]
    "/layers/?/outer/*" = "rest"    # a comment says what it costs
    "/layers/0/outer/MatMul" = "int8"

Keys are ONNX node names or shell patterns over them; of several that fit a node the last
one counts. ``rest`` is the floating-point type around the quantized nodes, ``fp32`` is FP32
even where that is another.
"""

from __future__ import annotations

import difflib
import json
import sys
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from trtbuild.engine import Value
from trtbuild.errors import RecipeError
from trtbuild.graph.patterns import fitting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Word = Literal["int8", "fp8", "rest", "fp32"]

QUANTIZED = ("int8", "fp8")
"""The precisions that a policy can give to a node beside floating point."""

_FLOATS = ("rest", "fp32")

_LEGEND = """\
# ONNX node names, or shell patterns over them; of several that fit a node the last one counts.
# "{word}": quantized; "rest": the floating-point type around; "fp32": FP32 whatever that is."""


class Policy(Value, frozen=True, kw_only=True):
    """``nodes`` maps patterns to precisions, in their order; ``default`` is for all others."""

    default: Word
    nodes: dict[str, Word] = msgspec.field(default_factory=dict)


class _File(Value, frozen=True, kw_only=True):
    policy: Policy


class Assigned(Value, frozen=True, kw_only=True):
    """What a policy leaves alone in one graph: node names.

    ``unquantized`` stay in floating point, ``fp32`` of them in FP32 whatever the rest is.
    """

    unquantized: frozenset[str]
    fp32: frozenset[str]


def load_policy(path: Path) -> Policy:
    """Return the policy in a TOML file.

    Raises:
        RecipeError: the file is missing, is no TOML, or a table, key or precision is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(tables, _File, strict=True).policy
    except OSError as error:
        message = (
            f"{path}: cannot read the policy: {error.strerror}. Give auto, all or a .toml file"
        )
        raise RecipeError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not a text file ({error.reason}); a policy is TOML in UTF-8"
        raise RecipeError(message) from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {_explain(str(error))}") from error


def _explain(message: str) -> str:
    text, _, place = message.partition(" - at `$.policy")
    place = place.rstrip("`").lstrip(".")
    wrong = text.rpartition(" ")[2].strip("`'")
    if "unknown field" in text:
        words = ["default", "nodes"] if place or "policy" in message else ["policy"]
    elif "enum value" in text:
        words = list(get_args(Word))
    else:
        words = []
    near = difflib.get_close_matches(wrong, words, n=1)
    rest = [word for word in words if word not in near]
    hint = f"; expected {' or '.join(filter(None, [*near, ', '.join(rest)]))}" if words else ""
    table = "[policy.nodes]" if place.startswith("nodes") else "[policy]"
    return f"{table}{f' {place}' if place == 'default' else ''}: {text}{hint}"


def policy_schema() -> dict[str, object]:
    """Return the JSON schema of a policy file, for editors."""
    return msgspec.json.schema(_File)


def assign(policy: Policy, nodes: Iterable[str], compute: frozenset[str]) -> Assigned:
    """Return what ``policy`` leaves alone of ``nodes``, all node names of the graph.

    The default is for ``compute``, the nodes that could be quantized by themselves: what hands
    8-bit values through between them follows, unless a pattern names it.

    Raises:
        RecipeError: a pattern fits no node: a typing mistake would quantize what it names.
    """
    names = list(nodes)
    words: dict[str, Word] = dict.fromkeys(compute, policy.default)
    for pattern, word in policy.nodes.items():
        found = fitting(names, pattern)
        if not found:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise RecipeError(
                f"the policy's pattern {pattern!r} fits no node of the simplified graph; the "
                f"closest are {', '.join(close)}. Correct it, or leave it out"
            )
        words.update(dict.fromkeys(found, word))
    return Assigned(
        unquantized=frozenset(name for name, word in words.items() if word in _FLOATS),
        fp32=frozenset(name for name, word in words.items() if word == "fp32"),
    )


def quantized_word(policy: Policy) -> str:
    """Return the precision that the policy quantizes to, empty where it quantizes nothing.

    Raises:
        RecipeError: it names more than one.
    """
    words = {policy.default, *policy.nodes.values()} - set(_FLOATS)
    if len(words) > 1:
        raise RecipeError(
            f"the policy mixes {' and '.join(sorted(words))}: one network has one of them"
        )
    return next(iter(words), "")


def word_of(precision: str) -> Word:
    """Return the word for nodes that are quantized to ``precision``."""
    return "fp8" if precision == "fp8" else "int8"


def to_toml(policy: Policy, heading: str, comments: Mapping[str, str]) -> str:
    """Return the file of ``policy``: ``heading`` on top, ``comments`` behind patterns."""
    top = "".join(f"#{_comment(line)[3:]}\n" for line in heading.splitlines())
    lines = [
        f"{_quoted(pattern)} = {_quoted(word)}{_comment(comments.get(pattern, ''))}\n"
        for pattern, word in policy.nodes.items()
    ]
    legend = _LEGEND.format(word=quantized_word(policy) or "int8")
    return (
        f"{top}[policy]\ndefault = {_quoted(policy.default)}\n\n"
        f"{legend}\n[policy.nodes]\n{''.join(lines)}"
    )


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's, but for the one control character it leaves as is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    """Return ``text`` as a comment, without what TOML forbids in one: control characters."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    words = printable.split()
    return f"  # {' '.join(words)}" if words else ""
