"""TensorRT-RTX engines on a GPU compute what ONNX Runtime computes from the same graph."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.backends import building, graphs
from trtbuild.backends import gpu, tensorrt_rtx, trt_session
from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import TrustError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends import Session
    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph

pytestmark = [pytest.mark.gpu, pytest.mark.rtx]


def _open(graph: Graph, folder: Path) -> Session:
    (target, *_) = (entry.target for entry in tensorrt_rtx.targets(gpu.archs()))
    reason = trt_session.cannot_run(target)
    if reason or target.arch not in tensorrt_rtx.ARCHS:
        pytest.skip(reason or f"TensorRT-RTX does not support {target.arch}")
    building.build(graph, target, folder / "engine")
    return trt_session.open_session((folder / "engine").read_bytes(), target)


@pytest.mark.parametrize("scheme", [None, tensorrt_rtx.SCHEME], ids=["fp32", "int8"])
def test_an_engine_computes_what_its_graph_computes(
    scheme: Scheme | None, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", scheme)
    session = _open(graph, tmp_path)
    assert [spec.name for spec in session.inputs] == ["x"]
    for batch in (1, 8, 3):
        x = graphs.images(batch)
        (expected,) = open_graph(graph.path, fused=False).run({"x": x}).values()
        (got,) = session.run({"x": x}).values()
        assert got.shape == expected.shape
        assert np.mean(np.abs(got - expected) > graphs.SCALE) < 0.01


def test_threads_share_a_session(tmp_path: Path) -> None:
    session = _open(graphs.residual(tmp_path / "m.onnx", None), tmp_path)
    batches = [graphs.images(1) * factor for factor in range(8)]
    alone = [session.run({"x": batch}) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: session.run({"x": batch}), batches * 4))
    for index, outputs in enumerate(together):
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, alone[index % 8][name])


def test_a_shape_outside_of_the_profile_is_refused(tmp_path: Path) -> None:
    session = _open(graphs.residual(tmp_path / "m.onnx", None), tmp_path)
    with pytest.raises(UsageError, match="outside of the profile"):
        session.run({"x": graphs.images(9)})


def test_bytes_that_are_no_engine_are_refused() -> None:
    (target, *_) = (entry.target for entry in tensorrt_rtx.targets(gpu.archs()))
    if trt_session.cannot_run(target):
        pytest.skip(trt_session.cannot_run(target))
    with pytest.raises(TrustError, match="refuses the engine"):
        trt_session.open_session(b"\0" * 4096, target)
