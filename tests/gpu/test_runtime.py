"""The runtime on a GPU: pools, profiles, graphs, arrays of other libraries, leaks."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from tests.backends import building, graphs
from trtbuild.backends import NAMES, backend, gpu, trt_session
from trtbuild.backends.ort_session import open_graph
from trtbuild.backends.session import SessionOptions
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.session import LoadedSession
    from trtbuild.engine import Target
    from trtbuild.graph import Graph

pytestmark = pytest.mark.gpu

Built = tuple["Graph", bytes, "Target"]
Array = npt.NDArray[np.float32]

FLAVORS = [name for name in NAMES if name.startswith("tensorrt")]


@pytest.fixture(params=FLAVORS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Built:
    """A small residual network (x: N x 3 x 16 x 16, N up to 8), its engine and target."""
    found = backend(request.param).targets(gpu.archs()[:1])
    reason = found[0].cannot_build or found[0].cannot_run
    if reason:
        pytest.skip(reason)
    graph = graphs.residual(tmp_path / "m.onnx", None)
    building.build(graph, found[0].target, tmp_path / "engine")
    return graph, (tmp_path / "engine").read_bytes(), found[0].target


def opened(engine: Built, contexts: int = 0, *, cuda_graphs: bool = True) -> LoadedSession:
    options = SessionOptions(contexts=contexts, cuda_graphs=cuda_graphs)
    return trt_session.open_session(engine[1], engine[2], options)


def expected(engine: Built, x: Array) -> Array:
    (found,) = open_graph(engine[0].path, fused=False).run({"x": x}).values()
    return found


def close(got: Array, wanted: Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_every_shape_in_any_order(engine: Built, *, cuda_graphs: bool) -> None:
    with opened(engine, contexts=1, cuda_graphs=cuda_graphs) as session:
        for _ in range(4):
            for batch in (1, 8, 3, 5):
                x = graphs.images(batch)
                (got,) = session.run({"x": x}).values()
                close(got, expected(engine, x))
        assert (session.stats.value("graph_launches") > 0) == cuda_graphs
        assert session.stats.value("graph_fallbacks") == 0


@pytest.mark.parametrize("threads", [1, 2, 8, 32])
def test_threads_share_contexts(engine: Built, threads: int) -> None:
    batches = [graphs.images(1 + n % 8) * n for n in range(8)]
    wanted = [expected(engine, batch) for batch in batches]
    with opened(engine, contexts=4) as session, ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda n: session.run({"x": batches[n % 8]}), range(400)))
        for number, outputs in enumerate(found):
            close(next(iter(outputs.values())), wanted[number % 8])
        assert session.stats.calls == 400


def test_arrays_of_torch_share_the_context_and_are_not_copied(engine: Built) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch without CUDA")
    x = graphs.images(4)
    with opened(engine) as session:
        (name,) = (spec.name for spec in session.outputs)
        given = torch.from_numpy(x).cuda()
        for stream in (None, torch.cuda.current_stream().cuda_stream):
            made = session.run_device({"x": given}, stream=stream)[name]
            close(torch.from_dlpack(made).cpu().numpy(), expected(engine, x))
            out = torch.empty(made.shape, device="cuda")
            for factor in range(1, 6):
                doubled = given * factor  # still running when the engine is called
                session.run_device({"x": doubled}, {name: out}, stream)
                close(out.cpu().numpy(), expected(engine, x * factor))
        assert session.stats.value("bytes_to_device") == 0
    assert torch.ones(3, device="cuda").sum().item() == 3  # its context is still alive


def test_a_shape_outside_of_every_profile_is_refused_and_the_session_goes_on(
    engine: Built,
) -> None:
    with opened(engine) as session:
        with pytest.raises(UsageError, match="outside of the profile"):
            session.run({"x": graphs.images(9)})
        session.run({"x": graphs.images(1)})


def test_closing_gives_the_memory_back(engine: Built) -> None:
    from trtbuild.backends import cuda_device  # noqa: PLC0415  its imports need a driver

    def free() -> int:
        gc.collect()
        with cuda_device.device(0).active():
            return cuda_device.Device.free_bytes()

    with opened(engine) as session:
        session.run({"x": graphs.images(8)})
    before = free()
    for _ in range(10):
        with opened(engine, contexts=2) as session:
            session.warm_up({"x": graphs.images(8)}, 5)
    assert before - free() < 16 << 20


@pytest.mark.slow
def test_a_hundred_thousand_calls_leak_nothing(engine: Built) -> None:
    from trtbuild.backends import cuda_device, memory  # noqa: PLC0415  its imports need a driver

    with opened(engine) as session:
        batches = [graphs.images(batch) for batch in (1, 2, 8)]

        def calls(count: int) -> tuple[int, int]:
            for number in range(count):
                session.run({"x": batches[number % 3]})
            gc.collect()
            with cuda_device.device(0).active():
                return memory.rss_bytes(), cuda_device.Device.free_bytes()

        rss, free = calls(5_000)
        rss_after, free_after = calls(100_000)
        assert rss_after - rss < 8 << 20
        assert free - free_after < 8 << 20
