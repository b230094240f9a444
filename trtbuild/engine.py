"""What an engine is: its target, the key that names it, the manifest that describes it.

Values only. Nothing here reads a file, and nothing heavier than msgspec is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from trtbuild.canonical import digest

if TYPE_CHECKING:
    from collections.abc import Mapping

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "int4", "nvfp4", "mxfp4"]
"""What an engine can be asked for: ``int8`` and ``fp8`` have activations and weights in it,
``int4``, ``nvfp4`` and ``mxfp4`` weights alone (docs/decisions/0010-formats.md)."""

Rest = Literal["fp32", "fp16", "bf16"]
"""What computes around quantized layers."""

PACKED: Mapping[str, str] = {"int4": "int4", "nvfp4": "fp4", "mxfp4": "fp4"}
"""The type of the weights that a layer reads, by the precision that packs only weights."""

KEY_SCHEMA = 1
"""Bumped by hand when the meaning of a field of :class:`EngineKey` changes."""

MANIFEST_SCHEMA = 2
"""Bumped by hand with the fields of :class:`Manifest`: 2 brought ``refit_of`` and
``weights_sha256``. A test says so when it was forgotten."""

Role = Literal["", "quantize", "reformat"]
"""What a layer does that computes nothing of the model; empty for all others."""

Setting = int | bool | str
"""The value of one builder setting; never a float, so that its JSON is canonical."""


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all values: immutable, keyword-only, strict about unknown fields."""

    @classmethod
    def of_earlier(cls, fields: dict[str, object]) -> dict[str, object]:
        """Return the JSON of a stored value with what an earlier version cannot have said.

        Only where there is no doubt what it would have said; all else stays missing.
        """
        return fields


class TensorSpec(Value, frozen=True, kw_only=True):
    """Name, element type and shape of one input or output.

    ``shape`` is outermost axis first; a dynamic axis is its name (``"batch"``), or ``"?"``.
    ``dtype`` is a NumPy name (``float32``, ``int64``, ``float16``, ``bool``) or ``bfloat16``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class ShapeRange(Value, frozen=True, kw_only=True):
    """The shapes of one input in one optimization profile, outermost axis first."""

    input: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse ranks that differ, sizes below 1, and shapes out of order."""
        if not len(self.min) == len(self.opt) == len(self.max):
            message = f"profile of {self.input!r}: min, opt and max must have one rank"
            raise ValueError(message)
        in_order = all(
            1 <= lo <= mid <= hi
            for lo, mid, hi in zip(self.min, self.opt, self.max, strict=True)
        )
        if not in_order:
            message = (
                f"profile of {self.input!r}: expected 1 <= min <= opt <= max on every axis, "
                f"got min {list(self.min)}, opt {list(self.opt)}, max {list(self.max)}"
            )
            raise ValueError(message)


class Target(Value, frozen=True, kw_only=True):
    """What an engine is built for.

    ``backend`` is ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``; ``arch`` is ``sm_89`` for
    a GPU or ``x86_64-avx512_vnni`` for a processor; ``os`` is ``linux-x86_64``. ``device`` is
    the GPU model whose kernels an engine holds (``trtbuild.backends.gpu.Gpu.identity``), empty
    where the architecture says all.
    """

    backend: str
    arch: str
    os: str
    device: str = ""

    def __str__(self) -> str:
        """Return the spelling that recipes use, ``tensorrt-rtx:sm_89``."""
        return f"{self.backend}:{self.arch}"


class Fingerprint(Value, frozen=True, kw_only=True):
    """The installed library that makes the bytes: full version, digest of its files."""

    backend: str
    version: str
    build: str


class EngineKey(Value, frozen=True, kw_only=True):
    """Everything that changes the bytes of an engine; the key is the digest of all of it.

    ``profiles`` is ordered, since a profile's index is visible to callers. ``settings`` holds
    every effective builder setting, sorted by name, defaults included.
    """

    network_sha256: str
    profiles: tuple[tuple[ShapeRange, ...], ...]
    settings: tuple[tuple[str, Setting], ...]
    target: Target
    fingerprint: Fingerprint
    key_schema: int = KEY_SCHEMA

    @property
    def digest(self) -> str:
        """Hash of every field, so that a new field changes the key by itself."""
        return digest("engine-key/v1", self)


class Layer(Value, frozen=True, kw_only=True):
    """One layer of a built engine.

    ``kind`` is the backend's own word (``correlation``, ``QLinearConv``). ``precision`` is the
    type that the layer computes in (``int8``, ``fp16``, ``bf16``, ``fp32``, ``int64`` ...).
    ``compute`` is true for convolutions, matrix products and what fused into them. ``nodes``
    are the ONNX nodes of the network that the layer covers, the compute node first.
    ``weights`` is the type of the packed weights that the layer reads and unpacks (``int4``,
    ``fp4``), empty for others: it computes in ``precision`` all the same.

    ``requested`` is the type that the network gives the operands of a compute layer, empty
    where nobody looked. ``role`` is what a layer does that computes nothing of the model:
    ``quantize`` (it only quantizes or dequantizes) or ``reformat`` (another layout or type),
    with the types that it ``reads`` and ``writes`` and, where all shapes are known, the bytes
    of both. ``engine_name`` is what the library's own profiler calls the layer, whose names are
    not always the model's; ``milliseconds`` is its time per call, where it was measured.
    """

    name: str
    kind: str
    precision: str
    compute: bool
    nodes: tuple[str, ...]
    weights: str = ""
    requested: str = ""
    role: Role = ""
    reads: str = ""
    writes: str = ""
    moved_bytes: int | None = None
    engine_name: str = ""
    milliseconds: float | None = None


class Layers(Value, frozen=True, kw_only=True):
    """What a backend tells of the engine that it built.

    ``unread`` says why nothing is known of its layers, and is empty where something is.
    """

    layers: tuple[Layer, ...]
    unread: str = ""

    @property
    def precision_achieved(self) -> dict[str, int]:
        """Number of compute layers by the precision that they compute in, sorted by name."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            if layer.compute:
                counts[layer.precision] = counts.get(layer.precision, 0) + 1
        return dict(sorted(counts.items()))

    @property
    def weights_packed(self) -> dict[str, int]:
        """Number of layers that read packed weights, by their type, sorted by name."""
        counts: dict[str, int] = {}
        for layer in self.layers:
            if layer.weights:
                counts[layer.weights] = counts.get(layer.weights, 0) + 1
        return dict(sorted(counts.items()))


class BuildRecord(Value, frozen=True, kw_only=True):
    """What a build returns beside the engine's bytes: layers, warnings, costs.

    ``refitted``: a stored engine got new weights, whose layers are that engine's.

    ``peak_rss_bytes`` is the high-water mark of the child that built; ``warnings`` are the
    backend's own lines that a reader should see, each once.
    """

    layers: Layers
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warnings: tuple[str, ...]
    seconds: float
    peak_rss_bytes: int
    refitted: bool = False


class Manifest(Value, frozen=True, kw_only=True):
    """Everything known of an engine when it was built; its record names it.

    ``recipe`` is the JSON of the recipe that asked for it first: where the model and the data
    were, so that the engine can be verified again. ``mac_share`` is the share of
    multiply-accumulates by the precision that computes them, 0 to 1. ``fused_layers`` counts
    the layers that cover more than one operator, QuantizeLinear and DequantizeLinear not
    counted. ``refit_of`` is the digest of the engine that was given other weights instead of
    building this one. ``weights_sha256`` is the network that an engine stored without weights
    (``strip_plan``) is given them from. Both are empty for others.
    """

    key: str
    preimage: EngineKey
    sha256: str
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: Layers
    precision_requested: str
    int8_mac_share: float
    fused_layers: int
    warnings: tuple[str, ...]
    build_seconds: float
    peak_rss_bytes: int
    created: str
    trtbuild_version: str
    recipe: str
    mac_share: dict[str, float] = msgspec.field(default_factory=dict)
    refit_of: str = ""
    weights_sha256: str = ""
    schema: int = MANIFEST_SCHEMA

    def __post_init__(self) -> None:
        """Refuse schemas of later versions, and stripped engines without their weights."""
        if not 1 <= self.schema <= MANIFEST_SCHEMA:
            message = f"manifest schema {self.schema}: expected 1 to {MANIFEST_SCHEMA}"
            raise ValueError(message)
        stripped = ("strip_plan", True) in self.preimage.settings
        if self.schema == 1 and stripped and not self.weights_sha256:
            message = "it does not say which weights its engine is given"
            raise ValueError(message)

    @classmethod
    def of_earlier(cls, fields: dict[str, object]) -> dict[str, object]:
        """Return the fields of a manifest of schema 1: no engine was refitted then."""
        if fields.get("schema") != 1:
            return fields
        return {"refit_of": "", "weights_sha256": "", **fields}
