"""The ranges of a graph's tensors: measured once, for every method and policy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from trtbuild.backends.distributions import version
from trtbuild.canonical import digest
from trtbuild.engine import Value
from trtbuild.pipeline.source import calibration
from trtbuild.quantization import calibrate
from trtbuild.quantization import channel_statistics as channels
from trtbuild.quantization import extremes as scan
from trtbuild.quantization import quantize as quantizer
from trtbuild.quantization.ranges import load_ranges, ranges_digest, save_ranges
from trtbuild.store import make_record
from trtbuild.store.checkpoint import checkpoint
from trtbuild.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    context: Context, graph: Graph, data: Data, scheme: Scheme, placement: Placement
) -> tuple[Ranges, str]:
    """Return the ranges for ``placement`` by ``scheme``, and the digest of them.

    They are measured as if every node were quantized, so that keeping one in floating point
    does not calibrate again; and for one scheme alone, so that another target does not either:
    which tensors are observed decides what ONNX Runtime fuses, and so the last bits of all of
    them. What only keeping a node makes necessary is measured apart.
    """
    everywhere = quantizer.placement_of(graph, scheme, ()).observed
    ranges, sha256 = ranges_of(context, graph, data, everywhere)
    for spec in graph.inputs:
        seen = ranges.get(spec.name)
        if seen is not None and seen.minimum == seen.maximum:
            context.find(
                "calibrate",
                f"input {spec.name!r} is {seen.minimum:g} everywhere in the calibration data: "
                f"ranges of such data do not fit any other. Give data that services will see",
            )
    more = tuple(tensor for tensor in placement.observed if tensor not in ranges)
    if not more:
        return ranges, sha256
    merged = ranges | ranges_of(context, graph, data, more)[0]
    return merged, ranges_digest(merged)


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
        context.say(f"calibrate {counted(len(tensors), 'tensor')}")
        counter = _Counted(context, "calibrate", data.info.calibration_samples)
        saved = checkpoint(context.store, "ranges", key)
        with context.store.scratch() as folder:
            how = calibrate.Collection(
                work=folder,
                progress=counter,
                infinities=infinities,
                memory_mib=context.recipe.limits.calib_memory_mib,
                checkpoint=saved,
            )
            found = calibrate.calibrate(graph, tensors, calibration(data, graph), how)
            save_ranges(found, folder / "ranges.npz")
            blob = context.store.put_file("ranges.npz", folder / "ranges.npz")
        saved.remove()
        detail = _RangesDetail(sha256=ranges_digest(found), samples=counter.seen)
        return make_record("ranges", key, preimage, detail, (blob,))

    record = context.stage("calibrate", "ranges", key, make, _RangesDetail)
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
            found = scan.extremes(
                graph,
                tensors,
                batches,
                folder,
                _Counted(context, "scan", data.info.calibration_samples),
            )
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
            said = _Counted(context, "channels", data.info.calibration_samples)
            found = channels.channel_statistics(
                graph, tensors, calibration(data, graph), folder, said
            )
            blob = context.store.put_bytes("channels.npz", channels.to_bytes(found))
        return make_record("channels", key, preimage, None, (blob,))

    context.say(f"measure the channels of {counted(len(tensors), 'tensor')}")
    record = context.stage("measure channels", "channels", key, make, object)
    stored = context.store.read(record.blobs[0].sha256)
    return channels.from_bytes(stored), record.blobs[0].sha256


def _collector() -> str:
    return f"onnxruntime {version('onnxruntime')}"


class _Counted:
    """Says how many samples were seen, how many a second, and how long the rest will take."""

    def __init__(self, context: Context, what: str, total: int) -> None:
        self._context = context
        self._what = what
        self._total = total
        self._first = (0, 0.0)
        self.seen = 0

    def __call__(self, seen: int) -> None:
        """Take note that ``seen`` samples were seen so far."""
        now, (start, since) = time.monotonic(), self._first
        if (
            not since
        ):  # the first chunk pays for what is made once, and a resumed run skips some
            self._first = (seen, now)
        self.seen = seen
        text = f"{self._what}: {seen} of {self._total} samples"
        if since and seen > start and now > since:
            rate = (seen - start) / (now - since)
            text += f", {rate:.3g} a second, {max(self._total - seen, 0) / rate:.0f} s left"
        self._context.say(text)
