"""The ranges of a graph's tensors: measured once, for every method and policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import NAMES, backend
from trtbuild.backends.fingerprint import version
from trtbuild.canonical import digest
from trtbuild.engine import Value
from trtbuild.pipeline.source import calibration
from trtbuild.quantization import calibrate
from trtbuild.quantization import channel_statistics as channels
from trtbuild.quantization import extremes as scan
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.ranges import load_ranges, ranges_digest, save_ranges
from trtbuild.store import make_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.source import Data
    from trtbuild.quantization.placement import Placement
    from trtbuild.quantization.ranges import Ranges
    from trtbuild.store import Record


class _RangesKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    data_sha256: str
    tensors: tuple[str, ...]
    infinities: calibrate.Infinities
    version: int
    collector: str


class _ScanKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    data_sha256: str
    tensors: tuple[str, ...]
    version: int
    collector: str


class _Extremes(Value, frozen=True, kw_only=True):
    amax: dict[str, float]


class _ChannelsKey(Value, frozen=True, kw_only=True):
    graph_sha256: str
    data_sha256: str
    axes: tuple[tuple[str, int], ...]
    version: int
    collector: str


class _RangesDetail(Value, frozen=True, kw_only=True):
    sha256: str
    samples: int


def ranges_for(
    context: Context,
    graph: Graph,
    data: Data,
    schemes: tuple[Scheme, ...],
    placements: Iterable[Placement],
) -> tuple[Ranges, str]:
    """Return the ranges for ``placements`` by ``schemes``, and the digest of them.

    They are measured as if every node were quantized by every backend, so that neither keeping
    one in floating point nor another target calibrates again: which tensors are observed
    decides what ONNX Runtime fuses, and so the last bits of all of them.
    """
    known = (*schemes, *(backend(name).SCHEME for name in NAMES))
    everywhere = [quantizer.placement_of(graph, scheme, ()) for scheme in known]
    tensors = dict.fromkeys(
        tensor for each in (*everywhere, *placements) for tensor in each.observed
    )
    return ranges_of(context, graph, data, tuple(tensors))


def ranges_of(
    context: Context,
    graph: Graph,
    data: Data,
    tensors: tuple[str, ...],
    infinities: calibrate.Infinities = "refuse",
) -> tuple[Ranges, str]:
    """Return the ranges of ``tensors`` over the calibration data, and the digest of them."""
    preimage = _RangesKey(
        graph_sha256=graph.sha256,
        data_sha256=data.info.calibration_sha256,
        tensors=tuple(sorted(tensors)),
        infinities=infinities,
        version=calibrate.VERSION,
        collector=_collector(),
    )
    key = digest("ranges/v1", preimage)

    def make() -> Record:
        samples = 0

        def progress(seen: int) -> None:
            nonlocal samples
            samples = seen
            context.say(f"calibrate: {seen} samples")

        context.say(f"calibrate {len(tensors)} tensors")
        with context.store.scratch() as folder:
            found = calibrate.calibrate(
                graph, tensors, calibration(data, graph), folder, progress, infinities
            )
            save_ranges(found, folder / "ranges.npz")
            blob = context.store.put_file("ranges.npz", folder / "ranges.npz")
        detail = _RangesDetail(sha256=ranges_digest(found), samples=samples)
        return make_record("ranges", key, preimage, detail, (blob,))

    record = context.stage("calibrate", "ranges", key, make)
    detail = record.read(_RangesDetail)
    return load_ranges(context.store.verified_path(record.blobs[0].sha256)), detail.sha256


def extremes_of(
    context: Context, graph: Graph, data: Data, tensors: tuple[str, ...]
) -> tuple[dict[str, float], str]:
    """Return the largest finite magnitude of ``tensors`` over the data, and their digest."""
    key = _ScanKey(
        graph_sha256=graph.sha256,
        data_sha256=data.info.calibration_sha256,
        tensors=tuple(sorted(tensors)),
        version=scan.VERSION,
        collector=_collector(),
    )

    def make() -> _Extremes:
        with context.store.scratch() as folder:
            batches = calibration(data, graph)
            found = scan.extremes(graph, tensors, batches, folder, _counting(context, "scan"))
        return _Extremes(amax=found)

    found = context.remembered("scan for overflow", "extremes", key, _Extremes, make)
    return found.amax, digest("extremes-content/v1", found)


def channel_statistics_of(
    context: Context, graph: Graph, data: Data, tensors: Mapping[str, int]
) -> tuple[dict[str, channels.ChannelStatistics], str]:
    """Return the statistics of each channel of ``tensors`` over the data, and their digest.

    ``tensors`` maps each tensor to the axis of its channels.
    """
    preimage = _ChannelsKey(
        graph_sha256=graph.sha256,
        data_sha256=data.info.calibration_sha256,
        axes=tuple(sorted(tensors.items())),
        version=channels.VERSION,
        collector=_collector(),
    )
    key = digest("channels/v1", preimage)

    def make() -> Record:
        with context.store.scratch() as folder:
            said = _counting(context, "channels")
            found = channels.channel_statistics(
                graph, tensors, calibration(data, graph), folder, said
            )
            blob = context.store.put_bytes("channels.npz", channels.to_bytes(found))
        return make_record("channels", key, preimage, None, (blob,))

    context.say(f"measure the channels of {len(tensors)} tensors")
    record = context.stage("measure channels", "channels", key, make)
    stored = context.store.read(record.blobs[0].sha256)
    return channels.from_bytes(stored), record.blobs[0].sha256


def _collector() -> str:
    return f"onnxruntime {version('onnxruntime')}"


def _counting(context: Context, what: str) -> Callable[[int], None]:
    return lambda seen: context.say(f"{what}: {seen} samples")
