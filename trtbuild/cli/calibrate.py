"""``trtbuild calibrate``: the ranges of a model's tensors, measured or from a cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.engine import (
    CalibMemoryOption,
    CalibrationOption,
    ShapeOption,
    SourceArgument,
    TrtCacheOption,
)
from trtbuild.cli.options import JsonOption, OfflineOption, QuietOption, StoreOption
from trtbuild.wording import counted

if TYPE_CHECKING:
    from trtbuild.pipeline.partial import Part, TensorRow


def calibrate(  # noqa: PLR0913  one parameter per option is how Typer works
    source: SourceArgument,
    *,
    calibration: CalibrationOption = None,
    shape: ShapeOption = None,
    calib_memory: CalibMemoryOption = None,
    from_trt_cache: TrtCacheOption = None,
    to_trt_cache: Annotated[
        Path | None,
        typer.Option(
            "--to-trt-cache", metavar="FILE", help="Write a TensorRT calibration cache here."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="The method of the cache's scales.")
    ] = "minmax",
    trt_version: Annotated[
        str,
        typer.Option("--trt-version", metavar="8.6.1", help="The release the cache is for."),
    ] = "8.6.1",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the statistics (.npz) here.")
    ] = None,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the ranges of a model's tensors in one pass, with every method's threshold.

    With --from-trt-cache: show which tensors an old calibration cache has scales for. With
    --to-trt-cache: write one, for TensorRT 8 to 10.
    """
    from trtbuild.cli.output import prepare, speaker
    from trtbuild.cli.request import Arguments, recipe_of
    from trtbuild.errors import UsageError
    from trtbuild.pipeline.partial import Part
    from trtbuild.store import Store

    given = {"--from-trt-cache": from_trt_cache, "--to-trt-cache": to_trt_cache, "--out": out}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} are for different jobs: give one of them")
    arguments = Arguments(
        calibration=calibration,
        shape=tuple(shape or ()),
        calib_memory_mib=calib_memory,
        trt_cache=from_trt_cache,
    )
    recipe = recipe_of(source, arguments)
    say = speaker(quiet=quiet)
    part = Part(recipe=recipe, store=Store.open(store).settled(say), say=say)
    if to_trt_cache is not None:
        prepare(to_trt_cache, "--to-trt-cache")
        _write(part, to_trt_cache, method, trt_version, as_json=as_json)
    elif from_trt_cache is not None:
        _fit(part, as_json=as_json)
    else:
        prepare(out, "--out")
        _measure(part, out, as_json=as_json)


def _measure(part: Part, out: Path | None, *, as_json: bool) -> None:
    from trtbuild.cli.output import print_json, writing
    from trtbuild.pipeline.partial import calibrate as run
    from trtbuild.quantization.ranges import save_ranges
    from trtbuild.report.sections import Column, Section
    from trtbuild.report.terminal import print_section

    found = run(part)
    if out is not None:
        with writing(out, "--out"):
            save_ranges(found.ranges, out)
    if as_json:
        print_json({"sha256": found.sha256, "tensors": found.rows})
        return
    methods = tuple(found.rows[0].thresholds) if found.rows else ()
    numbers = (
        Column(name=name.replace("percentile-", "p"), numeric=True)
        for name in ("min", "max", *methods)
    )
    section = Section(
        title=f"Ranges {found.sha256[:12]}: extremes, and thresholds of magnitude by method",
        columns=(Column(name="tensor"), *numbers),
        rows=tuple(
            (row.tensor, *(f"{value:.4g}" for value in _values(row))) for row in found.rows
        ),
    )
    print_section(section, sys.stdout)


def _values(row: TensorRow) -> tuple[float, ...]:
    return (row.minimum, row.maximum, *row.thresholds.values())


def _write(part: Part, path: Path, method: str, version: str, *, as_json: bool) -> None:
    from trtbuild.cli.output import print_json, writing
    from trtbuild.pipeline.caches import measure
    from trtbuild.quantization.trt_cache import header_version, write_cache

    cache = measure(part, method, header_version(version))
    with writing(path, "--to-trt-cache"):
        write_cache(cache, path)
    if as_json:
        print_json(
            {
                "path": str(path),
                "header": cache.header,
                "method": method,
                "scales": cache.scales,
            }
        )
    else:
        typer.echo(f"{path}: {cache.header}, {counted(len(cache.scales), 'scale')} by {method}")


def _fit(part: Part, *, as_json: bool) -> None:
    from trtbuild.cli.coverage import sections
    from trtbuild.cli.output import print_json
    from trtbuild.pipeline.caches import fit, refuse_incomplete
    from trtbuild.report.terminal import print_section

    found = fit(part)
    filled = part.recipe.quantization.provider is not None
    if as_json:
        print_json({"header": found.cache.header, "schemes": found.schemes})
    else:
        for section in sections(found, filled=filled):
            print_section(section, sys.stdout)
            typer.echo()
    if not filled:
        refuse_incomplete(found)
