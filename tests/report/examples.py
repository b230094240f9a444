"""A report as the digits recipe makes one: one engine that ran here, three that have a twin."""

from __future__ import annotations

from trtbuild.recipe import Gates
from trtbuild.report.document import (
    CalibrationRow,
    EngineReport,
    Finding,
    LatencyMs,
    Report,
    SkippedTarget,
    SourceReport,
    Stage,
    Verification,
)
from trtbuild.verification.gates import Evidence, judge
from trtbuild.verification.results import (
    Interval,
    MetricEstimate,
    OutputParity,
    Parity,
    Speedup,
    TensorErrors,
)

GATES = Gates(max_drop=0.005, min_speedup=1.0)
NO_DEVICE = "no NVIDIA GPU on this machine: run trtbuild verify on a machine that has one"


def metric(*, drop: float = 0.002) -> MetricEstimate:
    return MetricEstimate(
        higher_is_better=True,
        units=1000,
        reference=Interval(value=0.984, low=0.976, high=0.991),
        engine=Interval(value=0.984 - drop, low=0.974 - drop, high=0.99 - drop),
        drop=Interval(value=drop, low=drop - 0.002, high=drop + 0.004),
        worse_units=4,
        better_units=2,
    )


def errors(*, sqnr_db: float = 31.4) -> TensorErrors:
    return TensorErrors(
        output="logits",
        elements=10_000,
        cosine=0.999638,
        sqnr_db=sqnr_db,
        max_abs=0.71,
        argmax_agreement=0.993,
        nonfinite=0,
        reference_nonfinite=0,
    )


def latency(scale: float) -> LatencyMs:
    p50, p95, p99 = 1.204 * scale, 1.391 * scale, 1.877 * scale
    return LatencyMs(
        p50=p50,
        p95=p95,
        p99=p99,
        intervals={
            "p50": (p50 * 0.98, p50 * 1.02),
            "p95": (p95 * 0.9, p95 * 1.1),
            "p99": (p99 * 0.8, p99 * 1.2),
        },
        batch_size=32,
        samples=2000,
        cpu_count=2,
        load_average=0.4,
    )


def verification(*, twin: bool, drop: float, achieved: dict[str, int]) -> Verification:
    speedup = Speedup(value=1.86, low=1.83, high=1.9, pair_p10=1.71, pair_p90=2.02)
    evidence = Evidence(
        metric=metric(drop=drop),
        outputs=(errors(),),
        speedup=None if twin else speedup,
        no_latency=NO_DEVICE if twin else "",
        precision_requested="int8",
        precision_achieved=achieved,
    )
    return Verification(
        measured_on="twin" if twin else "device",
        gates=judge(GATES, evidence),
        metrics={"top-1": metric(drop=drop)},
        outputs=(errors(),),
        samples=1000,
        latency_ms=None if twin else latency(1.0),
        no_latency=NO_DEVICE if twin else "",
        baseline="" if twin else "fp32",
        baseline_latency_ms=None if twin else latency(1.86),
        speedup=None if twin else speedup,
        twin_reason=NO_DEVICE if twin else "",
    )


def engine(
    backend: str, arch: str, *, drop: float = 0.002, cached: bool = False
) -> EngineReport:
    twin = backend == "tensorrt-rtx"
    achieved = {"int8": 6} if twin else {"fp32": 1, "int8": 5}
    digit = format(len(arch) + ord(arch[-1]), "x")[-1]
    return EngineReport(
        key=digit * 64,
        sha256=f"{digit}7c1e9" * 10 + "beef",
        path=f"/home/user/.cache/trtbuild/blobs/{digit}7/{digit}7c1e9",
        bytes=412_876 if twin else 98_311,
        backend=backend,
        backend_version="1.7.1.116" if twin else "1.32.0",
        arch=arch,
        precision_requested="int8",
        precision_achieved=achieved,
        int8_mac_share=1.0 if twin else 0.947,
        fused_layers=6 if twin else 5,
        cached=cached,
        verification=verification(twin=twin, drop=drop, achieved=achieved),
    )


def report(*, drop: float = 0.002, cached: bool = False) -> Report:
    """Return the report; ``drop`` is of all engines, ``cached`` of all stages and engines."""
    names = ("export", "optimize", "calibrate", "quantize", "build", "verify")
    seconds = (2.31, 0.12, 0.84, 0.4, 3.92, 4.75)
    rows = (
        ("minmax", 0.981, 30.2),
        ("percentile 99.99", 0.984, 31.4),
        ("entropy", 0.962, 17.8),
    )
    calibration = (
        CalibrationRow(
            method=method,
            scheme="x86 uint8",
            metric=score,
            sqnr_db=sqnr_db,
            chosen=method == "percentile 99.99",
        )
        for method, score, sqnr_db in (*rows, ("mse", 0.983, 32.0))
    )
    parity = (
        OutputParity(
            output="logits",
            batch_size=size,
            max_abs=7.6e-6,
            max_relative=4.1e-7,
            scale=18.5,
            verdict="equal",
        )
        for size in (1, 3, 64)
    )
    archs = ("sm_86", "sm_89", "sm_120")
    return Report(
        recipe="digits-int8",
        source=SourceReport(framework="torch", digest="3fa9" * 16),
        stages=tuple(
            Stage(name=name, key=f"{index}d" * 32, cached=cached, seconds=spent)
            for index, (name, spent) in enumerate(zip(names, seconds, strict=True))
        ),
        export_parity=Parity(tolerance=1e-3, outputs=tuple(parity)),
        calibration=tuple(calibration),
        engines=(
            engine("onnxruntime", "x86_64-avx512_vnni", drop=drop, cached=cached),
            *(engine("tensorrt-rtx", arch, drop=drop, cached=cached) for arch in archs),
        ),
        skipped_targets=(
            SkippedTarget(target="tensorrt", reason="no NVIDIA GPU on this machine"),
        ),
        findings=(Finding(stage="optimize", text="3 BatchNormalization folded into Conv"),),
    )
