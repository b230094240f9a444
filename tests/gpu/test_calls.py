"""Calls on a GPU of every kind: late outputs, host shapes, profiles, arrays, failures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnx
import pytest

from tests.backends import graphs
from trtbuild.backends import gpu_lock, trt_session
from trtbuild.backends.ort_session import open_graph
from trtbuild.backends.session import SessionOptions
from trtbuild.backends.trt_precision import network_flags
from trtbuild.engine import ShapeRange
from trtbuild.errors import BuildError, MissingBackendError, UsageError
from trtbuild.graph.model import read_graph

if TYPE_CHECKING:
    from tests.gpu.conftest import Builds, Built
    from trtbuild.backends.session import LoadedSession

pytestmark = pytest.mark.gpu


def opened(built: Built, **options: Any) -> LoadedSession:  # noqa: ANN401  those of SessionOptions
    return trt_session.open_session(built.plan, built.target, SessionOptions(**options))


def expected(built: Built, x: graphs.Array) -> graphs.Array:
    (found,) = open_graph(built.graph.path, fused=False).run({"x": x}).values()
    return found


def close(got: graphs.Array, wanted: graphs.Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2)


LATE = """
<ir_version: 10, opset_import: ["" : 21]>
late (float[n, 4] x) => (int64[kept, 2] y) {
    rectified = Relu(x)
    places = NonZero(rectified)
    y = Transpose<perm = [1, 0]>(places)
}
"""
"""Its output has as many rows as its input has elements above 0."""


def test_outputs_whose_shape_depends_on_values(builds: Builds) -> None:
    path = builds.folder / "late.onnx"
    onnx.save(onnx.parser.parse_model(LATE), path)
    try:
        built = builds.build(builds.request(read_graph(path)))
    except BuildError as error:
        pytest.skip(str(error))
    with opened(built) as session:
        for start in (-2, -100, 3, -7):
            x = np.arange(start, start + 16, dtype=np.float32).reshape(4, 4)
            wanted = np.argwhere(x > 0)
            np.testing.assert_array_equal(session.run({"x": x})["y"], wanted)
            found = session.run_device({"x": x})["y"]
            np.testing.assert_array_equal(found.numpy(), wanted)
        assert session.stats.value("graph_captures") == 0


def test_an_input_that_is_a_shape_is_read_on_the_host(builds: Builds) -> None:
    """Built with TensorRT's own interface, as no recipe describes such an input."""
    from trtbuild.backends.trt_api import api  # noqa: PLC0415  imports the library

    found = api(builds.target.backend)
    trt, builder = found.trt, found.trt.Builder(found.logger)
    network = builder.create_network(network_flags(trt))
    x = network.add_input("x", trt.float32, (8,))
    sizes = network.add_input("sizes", trt.int64, (2,))
    layer = network.add_shuffle(x)
    layer.set_input(1, sizes)
    network.mark_output(layer.get_output(0))
    layer.get_output(0).name = "y"
    profile = builder.create_optimization_profile()
    profile.set_shape_input("sizes", (1, 1), (2, 4), (8, 8))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, found.messages.errors
    with trt_session.open_session(bytes(plan), builds.target) as session:
        assert "sizes" in session.host_tensors
        values = np.arange(8, dtype=np.float32)
        for shape in ((2, 4), (8, 1), (2, 4), (1, 8)):
            given: dict[str, Any] = {"x": values, "sizes": np.array(shape, np.int64)}
            for outputs in (session.run(given), session.run_device(given)):
                y = (
                    outputs["y"]
                    if isinstance(outputs["y"], np.ndarray)
                    else outputs["y"].numpy()
                )
                np.testing.assert_array_equal(y, values.reshape(shape))


def test_the_profile_of_each_shape_is_taken_by_every_context(builds: Builds) -> None:
    request = builds.request(graphs.residual(builds.folder / "m.onnx", None))
    ((small,),) = request.profiles
    large = ShapeRange(input="x", min=(9, 3, 16, 16), opt=(16, 3, 16, 16), max=(32, 3, 16, 16))
    small = msgspec.structs.replace(
        small, min=(1, 3, 16, 16), opt=(4, 3, 16, 16), max=(8, 3, 16, 16)
    )
    built = builds.build(msgspec.structs.replace(request, profiles=((small,), (large,))))
    with opened(built, contexts=3) as session:
        session.warm_up({"x": graphs.images(4)}, 1)
        for _ in range(4):
            for batch in (1, 32, 8, 9):
                x = graphs.images(batch)
                (got,) = session.run({"x": x}).values()
                close(got, expected(built, x))
        assert session.stats.value("graph_fallbacks") == 0
        assert session.stats.value("graph_launches") > 0


def test_arrays_by_the_cuda_array_interface(builds: Builds) -> None:
    gpuarray = pytest.importorskip("pycuda.gpuarray")
    from trtbuild.backends import cuda_device  # noqa: PLC0415  its imports need a driver

    built = builds.residual()
    x = graphs.images(4)
    with opened(built) as session, cuda_device.device(0).active():
        (spec,) = session.outputs
        given, wanted = gpuarray.to_gpu(x), expected(built, x)
        out = gpuarray.empty(wanted.shape, np.float32)
        for _ in range(6):
            session.run_device({"x": given}, {spec.name: out})
            close(out.get(), wanted)
        assert session.stats.value("graph_launches") > 0
        flat = gpuarray.to_gpu(np.concatenate([np.zeros(1, np.float32), x.ravel()]))
        with pytest.raises(UsageError, match="multiple of 256"):
            session.run_device({"x": flat[1:].reshape(x.shape)})
        again = session.run_device({"x": given})[spec.name]
        close(again.numpy(), wanted)
        del given, out, flat, again


def test_a_capture_that_cuda_refuses_costs_no_result(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trtbuild.backends import cuda_device  # noqa: PLC0415  its imports need a driver

    real = cuda_device.Stream.capture

    def spoiled(stream: cuda_device.Stream, enqueue: Any) -> Any:  # noqa: ANN401  as it
        def wait() -> None:
            enqueue()
            stream.synchronize()  # what no capture allows

        return real(stream, wait)

    monkeypatch.setattr(cuda_device.Stream, "capture", spoiled)
    built = builds.residual()
    x = graphs.images(4)
    with opened(built, contexts=1) as session:
        for _ in range(8):
            (got,) = session.run({"x": x}).values()
            close(got, expected(built, x))
        assert session.stats.value("graph_fallbacks") == 1
        assert session.stats.value("graph_launches") == 0


def test_a_full_device_is_told_and_the_next_load_works(builds: Builds) -> None:
    from trtbuild.backends import cuda_device  # noqa: PLC0415  its imports need a driver

    built = builds.residual()
    device = cuda_device.device(0)
    with gpu_lock.all_of(gpu_lock.measured((built.target,)), pytest.fail):
        with device.active():
            blocker = device.allocate(device.free_bytes() - (48 << 20))
        try:
            with pytest.raises(MissingBackendError, match="MiB of device memory"):
                opened(built)
        finally:
            with device.active():
                device.free(blocker)
    with opened(built) as session:
        session.run({"x": graphs.images(1)})


def test_calls_are_counted_in_the_metrics(builds: Builds) -> None:
    with opened(builds.residual()) as session:
        for _ in range(5):
            session.run({"x": graphs.images(2)})
        text = session.metrics()
    labels = f'{{backend="{builds.target.backend}",arch="{builds.target.arch}"'
    assert f"latency_seconds_count{labels}}} 5" in text
    assert f"contexts{labels}}} " in text
    assert "graph_launches_total" in text
    assert "device_memory_bytes" in text
