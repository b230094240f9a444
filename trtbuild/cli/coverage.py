"""What ``calibrate --from-trt-cache`` shows of a calibration cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.quantization.trt_cache import amax_of
from trtbuild.report.sections import Column, Section
from trtbuild.wording import counted

if TYPE_CHECKING:
    from trtbuild.pipeline.caches import Covered, Fitted


def sections(found: Fitted, *, filled: bool) -> list[Section]:
    """Return the tables that say what a cache is worth.

    ``filled`` is whether calibration data will give the scales that it lacks.
    """
    numbers = ("needed", "in the cache", "by same values", "missing")
    scales = counted(len(found.cache.scales), "scale")
    summary = Section(
        title=f"Calibration cache {found.cache.header}: {scales}",
        columns=(
            Column(name="backend"),
            Column(name="scheme"),
            *(Column(name=name, numeric=True) for name in numbers),
        ),
        rows=tuple(
            (", ".join(each.backends), each.scheme, *map(str, _counts(each)))
            for each in found.schemes
        ),
        notes=_notes(found),
    )
    tensors = (
        Section(
            title=f"Scales for {each.scheme}",
            columns=(
                Column(name="tensor"),
                Column(name="scale", numeric=True),
                Column(name="amax", numeric=True),
                Column(name="from"),
            ),
            rows=_rows(each, filled=filled),
        )
        for each in found.schemes
    )
    return [summary, *tensors]


def _counts(each: Covered) -> tuple[int, int, int, int]:
    matches, missing = each.coverage.matches, len(each.coverage.missing)
    own = sum(match.entry == match.tensor for match in matches)
    return len(matches) + missing, own, len(matches) - own, missing


def _rows(each: Covered, *, filled: bool) -> tuple[tuple[str, ...], ...]:
    word = "the data" if filled else "MISSING"
    found = [
        (
            match.tensor,
            f"{match.scale:.6g}",
            f"{amax_of(match.scale):.6g}",
            "its entry" if match.entry == match.tensor else f"same values: {match.entry}",
        )
        for match in each.coverage.matches
    ]
    missing = [
        (
            item.name,
            "-",
            "-",
            word + (f"; entries like it: {', '.join(item.close)}" if item.close else ""),
        )
        for item in each.coverage.missing
    ]
    return (*missing, *found)


def _notes(found: Fitted) -> tuple[str, ...]:
    """Return what became of the entries that no scheme uses: the first scheme's view."""
    if not found.schemes:
        return ()
    first = found.schemes[0]
    seen = first.coverage
    notes = [
        f"{seen.unneeded} entries are of tensors that {first.scheme} needs no scale of",
        f"{seen.internal} entries are of TensorRT's own tensors",
    ]
    for item in seen.unknown:
        like = f"; tensors like it: {', '.join(item.close)}" if item.close else ""
        notes.append(f"{item.name!r} fits no tensor of the model{like}")
    return tuple(notes)
