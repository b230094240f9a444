"""The document of a run: what ``--json`` prints. Its field names are a contract.

Fields may be added, never renamed. ``passed`` and ``full_cache_hit`` follow from the other
fields: they are computed whenever a value is made or read, and what a caller or a file says
they are does not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec.structs import force_setattr

from trtbuild.engine import Value
from trtbuild.errors import GateError, StoreError
from trtbuild.verification.results import (
    GateResult,
    Interval,
    MetricEstimate,
    Parity,
    Speedup,
    TensorErrors,
)

if TYPE_CHECKING:
    from trtbuild.verification.results import Latency

SCHEMA: Literal[1] = 1


class SourceReport(Value, frozen=True, kw_only=True):
    """The model: its framework, and the digest of the ONNX graph that it exports to."""

    framework: str
    digest: str


class Stage(Value, frozen=True, kw_only=True):
    """One stage of the run; ``seconds`` is what it took now, also when it was cached."""

    name: str
    key: str
    cached: bool
    seconds: float


class CalibrationRow(Value, frozen=True, kw_only=True):
    """One way to quantize, tried on held-out data; ``metric`` is ``None`` without a metric."""

    method: str
    scheme: str
    metric: float | None
    sqnr_db: float | None
    chosen: bool


class KeptNode(Value, frozen=True, kw_only=True):
    """A node that a policy leaves in floating point, and what its quantization would cost.

    ``mac_share`` is its part of all multiply-accumulates. ``sqnr_db`` is the model's SQNR with
    this node alone quantized, ``drop`` that of the metric; both are ``None`` where nobody
    looked. ``measured`` is false where they are this node's part of a group's.
    """

    node: str
    mac_share: float
    sqnr_db: float | None = None
    drop: float | None = None
    measured: bool = False


class PolicyTrial(Value, frozen=True, kw_only=True):
    """One policy that was tried on the batches that choose; ``inside`` is within the budget.

    ``kept`` is how many nodes it leaves in floating point, ``mac_share`` the planned share of
    multiply-accumulates in 8 bits. ``drop`` has its 95 % interval, ``None`` without a metric.
    """

    kept: int
    mac_share: float
    sqnr_db: float | None
    drop: Interval | None
    inside: bool


class PolicyReport(Value, frozen=True, kw_only=True):
    """Which nodes a network leaves in floating point, who decided so, and why.

    ``source`` is ``search`` where trials decided, ``recipe`` where it or its file did.
    ``mac_share`` is the planned share of multiply-accumulates in 8 bits; ``budget_met`` is
    false where no policy that was tried is inside the budget.
    """

    scheme: str
    source: Literal["search", "recipe"]
    reason: str
    mac_share: float
    kept: tuple[KeptNode, ...] = ()
    trials: tuple[PolicyTrial, ...] = ()
    runs: int = 0
    units: int = 0
    budget_met: bool = True


class DenseNode(Value, frozen=True, kw_only=True):
    """A layer that could not, or must not, be sparse, and why."""

    node: str
    reason: str


class SparsityReport(Value, frozen=True, kw_only=True):
    """Which layers have weights with the ``pattern`` 2:4: at most two of four are not zero.

    ``weight_share`` is the share of all weights of layers that are in sparse ones, 0 to 1.
    ``lost`` is, by layer, the part of its output's energy that pruning cost on calibration
    data; empty without data.
    """

    pattern: str
    criterion: str
    sparse: tuple[str, ...]
    dense: tuple[DenseNode, ...]
    weight_share: float
    lost: dict[str, float]


class LatencyMs(Value, frozen=True, kw_only=True):
    """Percentiles of the wall time of one call, in milliseconds, measured on the device.

    ``intervals`` has the 95 % interval ``(low, high)`` of each percentile by its name.
    """

    p50: float
    p95: float
    p99: float
    intervals: dict[str, tuple[float, float]]
    batch_size: int
    samples: int
    cpu_count: int
    load_average: float | None


class Verification(Value, frozen=True, kw_only=True):
    """What one engine computes and costs, compared with the framework.

    ``measured_on`` is ``twin`` where the target's device is absent: then the graph that was
    built ran on ONNX Runtime, ``twin_reason`` says why, and there is no latency; ``no_latency``
    gives the reason wherever there is none. ``baseline`` names what ``speedup`` is over.
    """

    measured_on: Literal["device", "twin"]
    gates: tuple[GateResult, ...]
    metrics: dict[str, MetricEstimate]
    outputs: tuple[TensorErrors, ...]
    samples: int
    latency_ms: LatencyMs | None = None
    no_latency: str = ""
    baseline: str = ""
    baseline_latency_ms: LatencyMs | None = None
    speedup: Speedup | None = None
    twin_reason: str = ""
    passed: bool = False

    def __post_init__(self) -> None:
        """Refuse a twin with a latency: it would be another machine's. Derive ``passed``."""
        times = (self.latency_ms, self.baseline_latency_ms, self.speedup)
        if self.measured_on == "twin" and any(time is not None for time in times):
            message = "a twin has no latency: the target's device is absent"
            raise ValueError(message)
        force_setattr(self, "passed", all(gate.passed for gate in self.gates))

    @property
    def accuracy_gated(self) -> bool:
        """Whether a gate on the metric was judged."""
        return any(gate.name == "max_drop" and not gate.skipped for gate in self.gates)


class EngineSignature(Value, frozen=True, kw_only=True):
    """A key that signed an engine.

    ``holds`` tells whether a signature of it was verified here; that of an unknown key, which
    has no ``name``, cannot be. ``role`` is the policy's for it, empty where it has none.
    """

    keyid: str
    name: str
    role: str
    holds: bool


class EngineReport(Value, frozen=True, kw_only=True):
    """One engine in the store.

    ``precision_achieved`` counts compute layers by the type that they compute in,
    ``int8_mac_share`` is the share of multiply-accumulates that run in int8, 0 to 1, and
    ``mac_share`` has that of each precision. ``weights_packed`` counts the layers that read
    packed weights by their type: they unpack them, and compute in another precision.
    ``fused_layers`` counts layers that cover more than one node of the graph. Without
    ``signatures`` an engine is unsigned: only who built it loads it, on that machine.
    """

    key: str
    sha256: str
    path: str
    bytes: int
    backend: str
    backend_version: str
    arch: str
    precision_requested: str
    precision_achieved: dict[str, int]
    int8_mac_share: float
    fused_layers: int
    cached: bool
    verification: Verification
    mac_share: dict[str, float] = msgspec.field(default_factory=dict)
    weights_packed: dict[str, int] = msgspec.field(default_factory=dict)
    signatures: tuple[EngineSignature, ...] = ()

    @property
    def target(self) -> str:
        """The spelling that recipes use, ``tensorrt-rtx:sm_89``."""
        return f"{self.backend}:{self.arch}"


class SkippedTarget(Value, frozen=True, kw_only=True):
    """A target of the recipe that was not built, why, and what would make it possible."""

    target: str
    reason: str


class Finding(Value, frozen=True, kw_only=True):
    """Something that a reader should know: which stage found it, and what it is."""

    stage: str
    text: str


class Report(Value, frozen=True, kw_only=True):
    """Everything that one run found out.

    ``passed``: no gate of any engine failed. ``full_cache_hit``: every stage and every engine
    came from the store. ``evaluation_sha256`` is the digest of the data that engines were
    judged on, empty without data.
    """

    recipe: str
    source: SourceReport
    stages: tuple[Stage, ...]
    engines: tuple[EngineReport, ...]
    export_parity: Parity | None = None
    calibration: tuple[CalibrationRow, ...] = ()
    policies: tuple[PolicyReport, ...] = ()
    sparsity: SparsityReport | None = None
    skipped_targets: tuple[SkippedTarget, ...] = ()
    findings: tuple[Finding, ...] = ()
    evaluation_sha256: str = ""
    schema: Literal[1] = SCHEMA
    passed: bool = False
    full_cache_hit: bool = False

    def __post_init__(self) -> None:
        """Derive ``passed`` and ``full_cache_hit``."""
        force_setattr(self, "passed", all(each.verification.passed for each in self.engines))
        cached = [each.cached for each in self.stages] + [each.cached for each in self.engines]
        force_setattr(self, "full_cache_hit", bool(cached) and all(cached))

    @property
    def exit_code(self) -> int:
        """What the command leaves with: 0, or 5 when a gate failed."""
        return 0 if self.passed else GateError.exit_code


def summarize(latency: Latency) -> LatencyMs:
    """Return what a report shows of a measurement: percentiles, without the raw samples."""
    found = {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}
    return LatencyMs(
        p50=latency.p50.value,
        p95=latency.p95.value,
        p99=latency.p99.value,
        intervals={name: (part.low, part.high) for name, part in found.items()},
        batch_size=latency.batch_size,
        samples=latency.samples,
        cpu_count=latency.cpu_count,
        load_average=latency.load_average,
    )


def to_json(report: Report) -> bytes:
    """Return the document as indented JSON in UTF-8 with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def from_json(document: bytes) -> Report:
    """Return the report of a document that :func:`to_json` wrote.

    Raises:
        StoreError: it is no JSON, or has unknown, missing or wrong fields.
    """
    try:
        return msgspec.json.decode(document, type=Report)
    except msgspec.MsgspecError as error:
        message = f"not a report of schema {SCHEMA}: {error}. Run the command again to make it"
        raise StoreError(message) from error
