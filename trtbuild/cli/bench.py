"""``trtbuild bench``: engines against each other, in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtbuild.cli.options import (
    JsonOption,
    OfflineOption,
    QuietOption,
    StoreOption,
    finite,
    positive,
)

if TYPE_CHECKING:
    from trtbuild.report.contest import BenchReport


def bench(  # noqa: PLR0913  one parameter per option is how Typer works
    engines: Annotated[
        list[str],
        typer.Argument(metavar="ENGINE...", help="Digests, prefixes, keys or paths."),
    ],
    *,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Size of axis 0 (default: opt).")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="NAME:SIZES", help="Sizes joined by x; repeat it."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="A provider (.py), .npz or folder of .npy (default: the recipe's).",
        ),
    ] = "",
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=0.01,
            max=86_400,
            callback=finite,
            help="Per engine, and per number of threads.",
        ),
    ] = 2.0,
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup",
            min=0,
            max=3600,
            callback=finite,
            help="Seconds per engine, at least.",
        ),
    ] = 0.2,
    threads: Annotated[
        str, typer.Option("--threads", metavar="N,N...", help="Concurrent callers.")
    ] = "1",
    contexts: Annotated[
        int,
        typer.Option("--contexts", min=0, help="Execution contexts on a GPU (0: 2)."),
    ] = 0,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU.")
    ] = True,
    allow_host_code: Annotated[
        bool,
        typer.Option(
            "--allow-host-code", help="Let version-compatible engines bring their runtime."
        ),
    ] = False,
    min_speedup: Annotated[
        float | None,
        typer.Option(
            "--min-speedup", callback=positive, help="Gate: of every engine over the first."
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            min=0,
            max=1e9,
            callback=finite,
            help="Of this machine, in your currency.",
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report here.")
    ] = None,
    store: StoreOption = "",
    as_json: JsonOption = False,
    _offline: OfflineOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure latency, throughput and energy of engines that take turns in one run."""
    from trtbuild.cli.output import prepare, speaker
    from trtbuild.pipeline.bench import BenchRequest
    from trtbuild.pipeline.bench import bench as run
    from trtbuild.pipeline.fed import Wish
    from trtbuild.verification.contest import ContestPlan
    from trtbuild.verification.rates import RatePlan
    from trtbuild.verification.turns import LatencyPlan

    prepare(markdown, "--markdown")
    request = BenchRequest(
        plan=ContestPlan(
            latency=LatencyPlan(
                warmup_seconds=warmup,
                max_warmup_seconds=max(2.0, 10 * warmup),
                seconds=seconds,
                max_seconds=max(10.0, seconds),
                max_rounds=1_000_000,
            ),
            rate=RatePlan(threads=_threads(threads), seconds=seconds),
        ),
        wish=Wish(data=data, batch=batch, shapes=dict(map(_shape, shape or ()))),
        contexts=contexts,
        cuda_graphs=cuda_graphs,
        allow_host_code=allow_host_code,
        price_per_hour=price_per_hour,
        min_speedup=min_speedup,
    )
    _finish(run(engines, store, request, speaker(quiet=quiet)), markdown, as_json=as_json)


def _threads(text: str) -> tuple[int, ...]:
    from trtbuild.errors import UsageError

    words = text.split(",")
    counts = [int(word) for word in words if word.isascii() and word.isdigit()]
    if len(counts) < len(words) or not all(1 <= count <= 256 for count in counts):  # noqa: PLR2004  more callers than any GPU has contexts
        raise UsageError(f"--threads {text}: expected numbers from 1 to 256, such as 1,2,4,8")
    return tuple(dict.fromkeys(counts))


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    from trtbuild.errors import UsageError

    name, _, sizes = text.rpartition(":")
    words = sizes.split("x")
    if not name or not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise UsageError(
            f"--shape {text}: expected NAME:SIZES with sizes joined by x, such as "
            "images:8x3x224x224"
        )
    return name, tuple(map(int, words))


def _finish(report: BenchReport, markdown: Path | None, *, as_json: bool) -> None:
    from trtbuild.cli.output import print_json, writing
    from trtbuild.report.contest import sections, verdict
    from trtbuild.report.markdown import page_to_markdown
    from trtbuild.report.terminal import print_section

    if markdown is not None:
        page = page_to_markdown("trtbuild bench", sections(report), verdict(report))
        with writing(markdown, "--markdown"):
            markdown.write_text(page, encoding="utf-8")
    if as_json:
        print_json(report)
    else:
        for section in sections(report):
            print_section(section, sys.stdout)
            typer.echo()
        typer.echo(verdict(report))
    raise typer.Exit(report.exit_code)
