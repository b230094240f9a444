"""What TensorRT tells of an engine on its GPU: layers and their times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.backends import building, graphs
from trtbuild.backends import gpu, staging, tensorrt_rtx, trt_session
from trtbuild.backends.trt_api import api
from trtbuild.backends.trt_inspector import information, layers_of

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import BuildRecord
    from trtbuild.graph import Graph

pytestmark = [pytest.mark.gpu, pytest.mark.rtx]


@pytest.fixture
def built(tmp_path: Path) -> tuple[Graph, BuildRecord, bytes]:
    (target, *_) = (entry.target for entry in tensorrt_rtx.targets(gpu.archs()))
    reason = trt_session.cannot_run(target)
    if reason or target.arch not in tensorrt_rtx.ARCHS:
        pytest.skip(reason or f"TensorRT-RTX does not support {target.arch}")
    graph = graphs.residual(tmp_path / "m.onnx", tensorrt_rtx.SCHEME)
    record = building.build(graph, target, tmp_path / "engine")
    return graph, record, (tmp_path / "engine").read_bytes()


def test_the_inspector_tells_the_compute_layers_that_the_builder_logged(
    built: tuple[Graph, BuildRecord, bytes], tmp_path: Path
) -> None:
    graph, record, plan = built
    staged = staging.stage(graph, tmp_path / "staged")
    found = api("tensorrt-rtx")
    runtime = found.trt.Runtime(found.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    layers = layers_of(information(found.trt, engine), staged.nodes)
    assert layers.unread == ""
    products = [
        {n for x in each.layers if x.compute for n in x.nodes}
        for each in (layers, record.layers)
    ]
    assert products[0] == products[1]
    assert layers.precision_achieved == record.layers.precision_achieved


def test_the_profiler_times_the_layers_by_the_names_that_the_record_has(
    built: tuple[Graph, BuildRecord, bytes],
) -> None:
    from trtbuild.backends.trt_times import engine_layer_ms  # noqa: PLC0415  needs a driver

    _, record, plan = built
    inputs = {"x": graphs.images(4).astype(np.float32)}
    times = engine_layer_ms(plan, 0, "tensorrt-rtx", inputs, 5)
    compute = {layer.engine_name for layer in record.layers.layers if layer.compute}
    assert compute <= set(times)
    assert all(times[name] > 0 for name in compute)
