"""Counters for people and for monitoring: a summary, lines of text, an OpenMetrics file."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import msgspec

from trtbuild.engine import Value
from trtbuild.store.counters import Outcome, Tally
from trtbuild.store.sizes import shown_size
from trtbuild.store.temporary import new_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FAMILIES = (
    ("trtbuild_cache_requests", "", "Lookups by tier, kind and outcome.", "count"),
    ("trtbuild_cache_bytes", "bytes", "Bytes of what was found.", "size_bytes"),
    ("trtbuild_cache_saved_seconds", "seconds", "Seconds that making it took.", "saved_s"),
)


class Summary(Value, frozen=True, kw_only=True):
    """All counters, and what they come to.

    ``hit_rate`` is hits over hits and misses, 0 to 1, ``None`` before the first: an error or a
    bypass is neither, and loads of services stand apart. ``saved_s`` is a lower bound: not
    every result says what it took.
    """

    hits: int
    misses: int
    errors: int
    bypasses: int
    corrupt: int
    loads: int
    refused: int
    hit_rate: float | None
    hit_bytes: int
    saved_s: float
    tallies: tuple[Tally, ...]
    schema: int = 1


def summarize(tallies: tuple[Tally, ...]) -> Summary:
    """Return the summary of all that was counted."""
    counts = dict.fromkeys(get_args(Outcome), 0)
    for tally in tallies:
        counts[tally.outcome] = counts.get(tally.outcome, 0) + tally.count
    asked = counts["hit"] + counts["miss"]
    return Summary(
        hits=counts["hit"],
        misses=counts["miss"],
        errors=counts["error"],
        bypasses=counts["bypass"],
        corrupt=counts["corrupt"],
        loads=counts["loaded"],
        refused=counts["refused"],
        hit_rate=round(counts["hit"] / asked, 4) if asked else None,
        hit_bytes=sum(tally.size_bytes for tally in tallies if tally.outcome == "hit"),
        saved_s=round(sum(tally.saved_s for tally in tallies), 3),
        tallies=tallies,
    )


def lines(summary: Summary) -> Iterator[str]:
    """Yield the summary as lines for a terminal."""
    rate = "nothing asked yet" if summary.hit_rate is None else f"{summary.hit_rate:.1%}"
    yield f"hit rate        {rate} ({summary.hits} hits, {summary.misses} misses)"
    yield f"errors          {summary.errors} (a tier could not be asked)"
    yield f"bypasses        {summary.bypasses} (measured anew on purpose, or not to be keyed)"
    yield f"corrupt         {summary.corrupt} (failed verification, set aside)"
    yield f"loads           {summary.loads} by services ({summary.refused} more were refused)"
    yield f"bytes of hits   {shown_size(summary.hit_bytes)}"
    yield f"seconds saved   {summary.saved_s:.1f} at least"
    for tally in summary.tallies:
        yield f"  {tally.tier:<8} {tally.kind:<12} {tally.outcome:<8} {tally.count}"


def write(path: Path, summary: Summary) -> None:
    """Write the counters in OpenMetrics text format 1.0, whole or not at all.

    For the text file collector of Prometheus' node exporter, which must never read a part.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{new_name()}")
    try:
        draft.write_text("".join(f"{line}\n" for line in _metrics(summary)), encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _metrics(summary: Summary) -> Iterator[str]:
    for name, unit, text, field in _FAMILIES:
        yield f"# TYPE {name} counter"
        if unit:
            yield f"# UNIT {name} {unit}"
        yield f"# HELP {name} {text}"
        for tally in summary.tallies:
            value = round(msgspec.structs.asdict(tally)[field], 3)
            named = (("tier", tally.tier), ("kind", tally.kind), ("outcome", tally.outcome))
            labels = ",".join(f'{label}="{_escaped(text)}"' for label, text in named)
            if value:
                yield f"{name}_total{{{labels}}} {value}"
    yield "# EOF"


def _escaped(text: str) -> str:
    """Return a label's value as OpenMetrics 1.0 writes it ("Text format", escaped-string)."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
