"""Sessions of TensorRT around a simulated device: pools, profiles, buffers, graphs, arrays."""

from __future__ import annotations

import gc
import importlib
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import trtbuild
from tests.runtime import simulated
from trtbuild.backends.session import Plan, SessionOptions
from trtbuild.engine import ShapeRange
from trtbuild.errors import BuildError, MissingBackendError, TrustError, UsageError
from trtbuild.runtime import warmup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.runtime.simulated import Array
    from trtbuild.backends.session import LoadedSession

LABELS = {"backend": "tensorrt", "arch": "sm_90"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[simulated.Device]:
    found = simulated.install(monkeypatch)
    yield found
    gc.collect()
    assert found.faults == []


def session(
    device: simulated.Device, options: SessionOptions | None = None, **engine: Array
) -> LoadedSession:
    module = importlib.import_module("trtbuild.backends.trt_device")
    found: LoadedSession = module.open_engine(
        Plan(engine=b"plan"),
        0,
        simulated.Api(device, **engine),
        options or SessionOptions(),
        LABELS,
    )
    return found


def rows(count: int, start: float = 0) -> Array:
    return np.arange(start, start + 4 * count, dtype=np.float32).reshape(count, 4)


def test_every_shape_computes_in_any_order_and_as_a_graph_too(device: simulated.Device) -> None:
    with session(device, SessionOptions(contexts=1)) as opened:
        for turn in range(5):
            for count in (1, 64, 3, 0, 17):
                x = rows(count, turn)
                np.testing.assert_array_equal(opened.run({"x": x})["y"], 2 * x)
        assert opened.stats.value("graph_captures") >= 5
        assert opened.stats.value("graph_launches") > 0
        assert {context.active_optimization_profile for context in device.contexts} == {0, 1}


def test_outputs_belong_to_the_caller(device: simulated.Device) -> None:
    with session(device) as opened:
        first = opened.run({"x": rows(2)})["y"]
        opened.run({"x": rows(2, 100)})
        np.testing.assert_array_equal(first, 2 * rows(2))


def test_a_capture_that_fails_is_not_tried_again_and_costs_no_result(
    device: simulated.Device,
) -> None:
    device.captures_fail = True
    with session(device, SessionOptions(contexts=1)) as opened:
        for count in (1, 2, 3, 4, 5, 6) * 5:
            np.testing.assert_array_equal(opened.run({"x": rows(count)})["y"], 2 * rows(count))
        assert opened.stats.value("graph_fallbacks") == 3
        assert device.graphs == {}


def test_an_engine_whose_profiles_are_not_shared_serves_from_one_context(
    device: simulated.Device,
) -> None:
    """As TensorRT 8.6 makes them unless it is told else; the binding raises."""
    with session(device, SessionOptions(contexts=3), exclusive=True) as opened:
        opened.warm_up({"x": rows(2)}, 2)
        for turn in range(9):
            x = rows(1 + turn % 2 * 20, turn)
            np.testing.assert_array_equal(opened.run({"x": x})["y"], 2 * x)
        assert opened.stats.value("graph_captures") == 0
        assert opened.stats.value("graph_fallbacks") > 0
        assert len(device.contexts) == 1


def test_without_graphs_nothing_is_captured(device: simulated.Device) -> None:
    with session(device, SessionOptions(cuda_graphs=False)) as opened:
        for _ in range(10):
            opened.run({"x": rows(2)})
        assert opened.stats.value("graph_captures") == 0


def test_outputs_whose_size_depends_on_values_come_whole(device: simulated.Device) -> None:
    with session(device, late=True) as opened:
        for start in (-4, -100, 0, -2) * 3:
            x = rows(4, start)
            np.testing.assert_array_equal(opened.run({"x": x})["y"], x[x > 0])
        found = opened.run_device({"x": rows(4, -3)})["y"]
        np.testing.assert_array_equal(found.numpy(), rows(4, -3)[rows(4, -3) > 0])
        assert opened.stats.value("graph_captures") == 0


class OnDevice:
    """An array of the device, offered by the CUDA Array Interface."""

    def __init__(
        self, device: simulated.Device, values: Array, *, offset: int = 0, **interface: object
    ) -> None:
        self.offset, self.interface = offset, interface
        device.depth += 1
        self.block = simulated._Block(device, values.nbytes + offset + 1)  # noqa: SLF001  its memory
        device.depth -= 1
        memory = self.block.array[offset : offset + values.nbytes]
        self.view = memory.view(values.dtype).reshape(values.shape)
        self.view[...] = values

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.view.shape,
            "typestr": self.view.dtype.str,
            "data": (int(self.block) + self.offset, False),
            "version": 3,
            "strides": None,
            "stream": None,
            **self.interface,
        }


@pytest.mark.parametrize("stream", [None, 77])
def test_device_arrays_go_in_and_out_without_copies(
    device: simulated.Device, stream: int | None
) -> None:
    with session(device) as opened:
        x, y = OnDevice(device, rows(3)), OnDevice(device, rows(3) * 0)
        for turn in range(6):
            x.view[...] = rows(3, turn)
            found = opened.run_device({"x": x}, {"y": y}, stream)
            assert found["y"] is y
            np.testing.assert_array_equal(y.view, 2 * rows(3, turn))
        assert opened.stats.value("bytes_to_device") == 0
        assert opened.stats.value("graph_launches") > 0
        made = opened.run_device({"x": x}, stream=stream)["y"]
        assert made.shape == (3, 4)
        assert made.__cuda_array_interface__["stream"] == stream
        np.testing.assert_array_equal(made.numpy(), 2 * x.view)


@pytest.mark.parametrize(
    ("inputs", "outputs", "part"),
    [
        ({"z": rows(1)}, {}, "expected the inputs"),
        ({"x": rows(1)}, {"q": 1}, "expected the outputs"),
        ({"x": rows(1)}, {"y": rows(1)}, "expected an array of GPU 0"),
        ({"x": rows(1).astype(np.float64)}, {}, "float64"),
        ({"x": object()}, {}, "__dlpack__"),
        ({"x": rows(65)}, {}, "outside of the profiles"),
    ],
)
def test_wrong_device_calls_are_told_and_counted(
    inputs: dict[str, object], outputs: dict[str, object], part: str, device: simulated.Device
) -> None:
    with session(device) as opened:
        with pytest.raises(UsageError, match=part):
            opened.run_device(inputs, outputs)
        assert 'errors_total{backend="tensorrt",arch="sm_90",error="UsageError"} 1' in (
            opened.metrics()
        )
        np.testing.assert_array_equal(opened.run({"x": rows(1)})["y"], 2 * rows(1))


def test_arrays_that_tensorrt_would_misread_are_refused_every_time(
    device: simulated.Device,
) -> None:
    x, y = OnDevice(device, rows(2)), OnDevice(device, rows(2))
    elsewhere = OnDevice(device, rows(2))
    device.places[int(elsewhere.block)] = 1
    own = rows(2)
    on_host = OnDevice(device, own, data=(-(-own.ctypes.data // 256) * 256, False))
    cases = [
        ({"x": OnDevice(device, rows(2), offset=16)}, {}, "multiple of 256.*clone"),
        ({"x": x}, {"y": OnDevice(device, rows(2), offset=128)}, "multiple of 256.*clone"),
        ({"x": elsewhere}, {}, "expected an array of GPU 0"),
        ({"x": x}, {"y": elsewhere}, "expected an array of GPU 0"),
        ({"x": OnDevice(device, rows(2), data=(0, False))}, {}, "expected an array of GPU 0"),
        ({"x": on_host}, {}, "expected an array of GPU 0"),
        (
            {"x": x},
            {"y": OnDevice(device, rows(2), data=(int(y.block), True))},
            "may only be read",
        ),
        ({"x": x}, {"y": OnDevice(device, rows(3))}, r"float32\[2, 4\], got float32\[3, 4\]"),
        ({"x": x}, {"y": OnDevice(device, rows(2).astype("f8"))}, r"got float64\[2, 4\]"),
        ({"x": OnDevice(device, rows(2).astype("f8"))}, {}, r"got float64\[2, 4\]"),
    ]
    with session(device) as opened:
        for _ in range(2):
            for inputs, outputs, part in cases:
                with pytest.raises(UsageError, match=part):
                    opened.run_device(inputs, outputs)
            opened.run_device({"x": x}, {"y": y})
            np.testing.assert_array_equal(y.view, 2 * x.view)


def test_an_empty_array_of_the_device_may_lie_nowhere(device: simulated.Device) -> None:
    with session(device) as opened:
        nowhere = OnDevice(device, rows(0), data=(0, False))
        assert opened.run_device({"x": nowhere})["y"].shape == (0, 4)


@pytest.mark.parametrize("stream", [None, 5, 77])
def test_our_own_arrays_go_from_call_to_call(
    stream: int | None, device: simulated.Device
) -> None:
    """Without a capsule; in another stream than the one that they are made in they wait."""
    with session(device) as opened:
        made = opened.run_device({"x": rows(2)}, stream=5)["y"]
        before = list(device.waits)
        again = opened.run_device({"x": made}, stream=stream)["y"]
        np.testing.assert_array_equal(again.numpy(), 4 * rows(2))
        waited = 5 in [of for _, of in device.waits[len(before) :]]
        assert waited == (stream in {None, 5})


def test_calls_on_the_same_arrays_prepare_nothing_again(
    device: simulated.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = OnDevice(device, rows(3)), OnDevice(device, rows(3))
    with session(device, SessionOptions(contexts=1)) as opened:
        for _ in range(4):
            opened.run_device({"x": x}, {"y": y})
        context = importlib.import_module("trtbuild.backends.trt_context").Context
        for name in ("shapes", "call"):
            monkeypatch.setattr(context, name, lambda *_: pytest.fail("it was known"))
        x.view[...] = rows(3, 9)
        opened.run_device({"x": x}, {"y": y})
        np.testing.assert_array_equal(y.view, 2 * rows(3, 9))


def test_threads_share_few_contexts(device: simulated.Device) -> None:
    with session(device, SessionOptions(contexts=3, cuda_graphs=False)) as opened:
        with ThreadPoolExecutor(16) as pool:
            found = list(
                pool.map(lambda n: opened.run({"x": rows(n % 64, n)})["y"], range(600))
            )
        for number, y in enumerate(found):
            np.testing.assert_array_equal(y, 2 * rows(number % 64, number))
        assert len(device.contexts) <= 3
        assert opened.stats.calls == 600


def test_warm_up_runs_every_context_before_the_first_call(device: simulated.Device) -> None:
    with session(device, SessionOptions(contexts=3)) as opened:
        opened.warm_up({"x": rows(2)}, 2)
        assert device.executions == 6
        assert 'contexts{backend="tensorrt",arch="sm_90"} 3' in opened.metrics()


def test_the_first_callers_of_every_profile_get_graphs_by_default(
    device: simulated.Device,
) -> None:
    profiles = tuple(
        (ShapeRange(input="x", min=(1, 4), opt=(opt, 4), max=(64, 4)),) for opt in (2, 64)
    )
    default = inspect.signature(trtbuild.load).parameters["warmup"].default
    assert default == warmup.RUNS
    with session(device) as opened:
        warmup.warm_up(opened, profiles, default)
        assert opened.stats.value("graph_captures") == 4  # two contexts, two profiles
        for count in (2, 64):
            opened.run({"x": rows(count)})
        assert opened.stats.value("graph_launches") == 2


def test_contexts_stop_where_memory_ends(device: simulated.Device) -> None:
    device.free_bytes = (64 << 20) + 3000
    with session(device, SessionOptions(contexts=8), scratch=1024) as opened:
        opened.warm_up({"x": rows(1)}, 1)
        assert 1 <= len(device.contexts) < 8
        np.testing.assert_array_equal(opened.run({"x": rows(1)})["y"], 2 * rows(1))


def test_where_buffers_fill_the_device_fewer_contexts_serve_every_caller(
    device: simulated.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "PROFILES", (((1, 4), (2, 4), (1 << 24, 4)),) * 2)
    x = rows(1 << 20)  # 16 MiB in and out, on the device and pinned: 64 MiB per context
    device.free_bytes = (164 << 20) + 3000
    with session(device, SessionOptions(contexts=4, cuda_graphs=False)) as opened:
        opened.warm_up({"x": x}, 1)
        assert len(device.contexts) == 2
        assert 'contexts_limit{backend="tensorrt",arch="sm_90"} 2' in opened.metrics()
        larger = rows(3 << 19)  # there is no room for two of them
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(lambda _: opened.run({"x": larger})["y"], range(12)):
                np.testing.assert_array_equal(y, 2 * larger)
        assert len(device.contexts) == 1
        with pytest.raises(MissingBackendError, match=r"MiB of (device|page-locked host) mem"):
            opened.run({"x": rows(1 << 22)})
        np.testing.assert_array_equal(opened.run({"x": rows(1)})["y"], 2 * rows(1))


def test_what_another_caller_makes_tensorrt_log_fails_no_call(
    device: simulated.Device,
) -> None:
    api = simulated.Api(device)
    inside, logged = threading.Event(), threading.Event()

    def log() -> None:
        inside.wait()
        api.messages.take("ERROR", "the other engine has failed")
        logged.set()

    module = importlib.import_module("trtbuild.backends.trt_device")
    with module.open_engine(Plan(engine=b"plan"), 0, api, SessionOptions(), LABELS) as opened:
        (context,) = device.contexts

        def infer_shapes() -> list[str]:
            inside.set()
            logged.wait()
            return []

        context.infer_shapes = infer_shapes  # type: ignore[method-assign]  # for this test
        thread = threading.Thread(target=log)
        thread.start()
        np.testing.assert_array_equal(opened.run({"x": rows(2)})["y"], 2 * rows(2))
        thread.join()

        def fail() -> list[str]:
            api.messages.take("ERROR", "mine")
            return []

        context.infer_shapes = fail  # type: ignore[method-assign]  # as above
        with pytest.raises(UsageError, match="mine"):
            opened.run({"x": rows(3)})


def test_too_little_memory_for_one_context_is_an_error_before_any_call(
    device: simulated.Device,
) -> None:
    with pytest.raises(MissingBackendError, match="MiB of device memory"):
        session(device, scratch=2 << 30)
    gc.collect()
    assert device.live == {}


@pytest.mark.parametrize("streams", [False, True])
def test_an_engine_that_streams_its_weights_may_be_larger_than_the_device(
    streams: bool,  # noqa: FBT001  a parameter of the test
    device: simulated.Device,
) -> None:
    module = importlib.import_module("trtbuild.backends.trt_device")
    device.free_bytes = (64 << 20) + 5000
    plan = Plan(engine=b"plan" + bytes(1 << 20), streams_weights=streams)
    arguments = (plan, 0, simulated.Api(device), SessionOptions(contexts=1), LABELS)
    if streams:
        with module.open_engine(*arguments) as opened:
            np.testing.assert_array_equal(opened.run({"x": rows(1)})["y"], 2 * rows(1))
    else:
        with pytest.raises(MissingBackendError, match="the engine's file"):
            module.open_engine(*arguments)


def test_bytes_that_are_no_engine_are_refused(device: simulated.Device) -> None:
    module = importlib.import_module("trtbuild.backends.trt_device")
    with pytest.raises(TrustError, match="refuses the engine"):
        module.open_engine(
            Plan(engine=b"junk"), 0, simulated.Api(device), SessionOptions(), LABELS
        )


@pytest.mark.parametrize("how", ["close", "collect"])
def test_everything_is_freed_and_a_closed_session_says_so(
    how: str, device: simulated.Device
) -> None:
    opened = session(device)
    for count in (1, 2, 64, 64, 64, 64):
        opened.run({"x": rows(count)})
    kept = opened.run_device({"x": rows(1)})["y"]
    if how == "close":
        opened.close()
        opened.close()
        with pytest.raises(UsageError, match="closed"):
            opened.run({"x": rows(1)})
    del opened
    gc.collect()
    assert len(device.live) == 1
    del kept
    gc.collect()
    assert device.live == {}
    assert device.graphs == {}
    assert device.depth == 0


def test_a_call_that_outlasts_close_frees_what_it_used_when_it_ends(
    device: simulated.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("trtbuild.backends.trt_device")
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    opened = session(device, SessionOptions(contexts=2, cuda_graphs=False))
    opened.warm_up({"x": rows(2)}, 1)
    inside, closed = threading.Event(), threading.Event()

    def compute(_stream: int) -> bool:
        inside.set()
        closed.wait()
        return True

    for each in device.contexts:
        each.execute_async_v3 = compute  # type: ignore[method-assign]  # for this test
    del each
    straggler = threading.Thread(target=lambda: opened.run({"x": rows(2)}))
    straggler.start()
    inside.wait()
    opened.close()
    assert len(device.contexts) == 1
    closed.set()
    straggler.join()
    assert device.contexts == []
    assert device.live == {}
    assert opened._engine._engine is None  # type: ignore[attr-defined]  # noqa: SLF001  it is closed


def test_a_device_that_breaks_down_is_told(device: simulated.Device) -> None:
    with session(device, SessionOptions(contexts=1)) as opened:
        opened.run({"x": rows(2)})
        (context,) = device.contexts

        def break_down(_stream: int) -> bool:
            raise simulated.OutOfMemoryError("illegal address")

        context.execute_async_v3 = break_down  # type: ignore[method-assign]  # for this test
        with pytest.raises(BuildError, match="illegal address"):
            opened.run({"x": rows(2)})


@pytest.mark.parametrize(
    ("options", "flags"), [(SessionOptions(), 0), (SessionOptions(allow_host_code=True), 1)]
)
def test_no_files_of_code_are_made_but_in_memory_for_a_runtime_inside(
    options: SessionOptions,
    flags: int,
    device: simulated.Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("trtbuild.backends.trt_engine")
    made: list[Any] = []
    create = module.Engine._new_runtime  # noqa: SLF001  nobody else sees the runtime

    def kept(*arguments: Array) -> Array:
        made.append(create(*arguments))
        return made[-1]

    monkeypatch.setattr(module.Engine, "_new_runtime", kept)
    with session(device, options):
        assert [each.tempfile_control_flags for each in made] == [flags]


def test_a_runtime_that_keeps_its_files_of_code_is_not_used(
    device: simulated.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn:
        engine_host_code_allowed = False
        tempfile_control_flags = property(lambda _: 3, lambda _self, _value: None)

    create = simulated.Api.__init__

    def stubborn(api: simulated.Api, *arguments: Array, **engine: Array) -> None:
        create(api, *arguments, **engine)
        api.trt.Runtime = lambda _logger: Stubborn()

    monkeypatch.setattr(simulated.Api, "__init__", stubborn)
    with pytest.raises(TrustError, match="temporary files"):
        session(device)
