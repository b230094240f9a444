"""What a reader sees of ``trtbuild bench``, of a GPU that tells much and one that does not."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tests.report import examples
from trtbuild.report.contest import (
    BenchedEngine,
    BenchReport,
    Throughput,
    Timed,
    sections,
    verdict,
)
from trtbuild.report.markdown import page_to_markdown
from trtbuild.report.terminal import print_section
from trtbuild.verification.conditions import Conditions, Spread
from trtbuild.verification.contest import Comparison, Way
from trtbuild.verification.gates import speed_gate
from trtbuild.verification.rates import Energy, Rate
from trtbuild.verification.results import Interval, Speedup, WarmUp

EVENTS = Way(clock="cuda events", transfers=False, cuda_graph=True)
ENERGY = Energy(
    mj_per_inference=Interval(value=3.1234, low=3.0, high=3.25), watts=61.0, idle_share=0.27
)
CALM = Conditions(
    device="NVIDIA L4",
    readings=41,
    sm_mhz=Spread(low=1980, median=2040, high=2040),
    memory_mhz=Spread(low=6251, median=6251, high=6251),
    temperature_c=Spread(low=44, median=51, high=58),
    power_mw=None,
    reasons={"locked clocks": 41},
    absent={"power_mw": "NVIDIA L4, NVML: Not Supported"},
)


def engine(name: str, scale: float, energy: Energy | None) -> BenchedEngine:
    warm_up = WarmUp(seconds=0.4, calls=300, settled=scale < 2)
    rate = Rate(
        threads=4,
        inferences_per_s=Interval(
            value=19_512 / scale, low=19_100 / scale, high=19_924 / scale
        ),
        p50_ms=6.4,
        p99_ms=11.25,
        calls=2400,
        energy=energy,
        no_energy="" if energy else "the GPU has no counter",
    )
    return BenchedEngine(
        name=name,
        key="a" * 64,
        sha256="b" * 64,
        bytes=3 << 20,
        backend="tensorrt",
        backend_version="10.13.3",
        arch="sm_89",
        precision_requested=name.split(maxsplit=1)[0],
        inputs={"images": (32, 3, 224, 224)},
        batch_size=32,
        data="data of calibration/photos.py",
        latency=tuple(
            Timed(way=way, latency_ms=examples.latency(scale * factor), warm_up=warm_up)
            for way, factor in ((Way(cuda_graph=True), 1.0), (EVENTS, 0.8))
        ),
        throughput=(Throughput(rate=rate, cost_per_million=0.0123 * scale),),
    )


def report(energy: Energy | None = ENERGY) -> BenchReport:
    speeds = Speedup(value=2.41, low=2.3, high=2.52, pair_p10=2.2, pair_p90=2.6)
    close = replace(speeds, value=1.004, low=0.97, high=1.03)
    names = ("fp16 11111111", "int8 22222222")
    return BenchReport(
        machine="AMD EPYC x 16; NVIDIA L4",
        engines=(engine(names[0], 2.4, energy), engine(names[1], 1.0, energy)),
        comparisons=tuple(
            Comparison(
                engine=names[1],
                baseline=names[0],
                way=way,
                speedup=speedup,
                distinct=speedup is speeds,
            )
            for way, speedup in ((Way(cuda_graph=True), speeds), (EVENTS, close))
        ),
        conditions=CALM,
        valid=True,
        attempts=1,
        price_per_hour=0.8,
    )


def drawn(found: BenchReport) -> str:
    out = io.StringIO()
    for section in sections(found):
        print_section(section, out)
    return out.getvalue() + verdict(found) + "\n"


GOLDEN = Path(__file__).with_name("contest.txt")


def test_the_page_in_a_terminal_is_as_it_was_looked_at() -> None:
    assert drawn(report()) == GOLDEN.read_text(encoding="utf-8")


def test_no_line_is_wider_than_a_terminal() -> None:
    assert max(map(len, drawn(report()).splitlines())) <= 100


def test_figures_that_are_missing_have_no_column_and_a_reason() -> None:
    found = drawn(report(energy=None))
    assert "mJ each" not in found
    assert "no energy: the GPU has no counter" in found
    assert "no power_mw: NVIDIA L4, NVML: Not Supported" in found


def test_a_throttled_run_is_called_invalid_everywhere() -> None:
    hot = replace(CALM, reasons={"power cap": 7, "locked clocks": 41})
    gate = speed_gate(1.0, None, "int8", invalid="power cap")
    found = replace(report(), conditions=hot, valid=hot.valid, attempts=3)
    assert "INVALID: the device throttled (power cap) in each of 3 runs" in verdict(found)
    assert "INVALID: clocks were lowered (power cap)" in drawn(found)
    assert found.exit_code == 0
    gated = replace(found, gates=(gate,))
    assert gated.exit_code == 5
    assert "FAILED: min_speedup" in page_to_markdown("x", sections(gated), verdict(gated))


@pytest.mark.parametrize("energy", [ENERGY, None])
def test_the_document_can_be_read_back(energy: Energy | None) -> None:
    found = report(energy)
    assert msgspec.json.decode(msgspec.json.encode(found), type=BenchReport) == found
