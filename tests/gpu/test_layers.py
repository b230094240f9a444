"""What TensorRT tells of an engine on its GPU: layers and their times."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from tests.backends import building, graphs
from trtbuild.backends import NAMES, backend, gpu, staging, trt_session
from trtbuild.backends.session import DEFAULT, NOTHING
from trtbuild.backends.trt_api import api
from trtbuild.backends.trt_inspector import information, layers_of

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import BuildRecord, Target
    from trtbuild.graph import Graph

pytestmark = pytest.mark.gpu

FLAVORS = [name for name in NAMES if name.startswith("tensorrt")]


class Built(NamedTuple):
    graph: Graph
    target: Target
    record: BuildRecord
    plan: bytes


@pytest.fixture(params=FLAVORS)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Built:
    module = backend(request.param)
    found = module.targets(gpu.archs()[:1])[0]
    reason = found.cannot_build or found.cannot_run
    if reason:
        pytest.skip(reason)
    graph = graphs.residual(tmp_path / "m.onnx", module.SCHEME)
    record = building.build(graph, found.target, tmp_path / "engine")
    return Built(graph, found.target, record, (tmp_path / "engine").read_bytes())


def test_the_inspector_tells_the_compute_layers_that_the_builder_told(
    built: Built, tmp_path: Path
) -> None:
    staged = staging.stage(built.graph, tmp_path / "staged")
    found = api(built.target.backend)
    runtime = found.trt.Runtime(found.logger)
    engine = runtime.deserialize_cuda_engine(built.plan)
    layers = layers_of(information(found.trt, engine), staged.nodes)
    assert layers.unread == ""
    products = [
        {n for x in each.layers if x.compute for n in x.nodes}
        for each in (layers, built.record.layers)
    ]
    assert products[0] == products[1]
    assert layers.precision_achieved == built.record.layers.precision_achieved


def test_the_profiler_times_the_layers_by_the_names_that_the_record_has(built: Built) -> None:
    inputs = {"x": graphs.images(4).astype(np.float32)}
    times = trt_session.layer_ms(built.plan, built.target, DEFAULT, NOTHING, inputs)
    compute = {layer.engine_name for layer in built.record.layers.layers if layer.compute}
    assert compute <= set(times)
    assert all(times[name] > 0 for name in compute)
