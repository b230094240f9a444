"""A device made of host memory, whose streams run at once, and a TensorRT that doubles.

Stands for PyCUDA, cuda-bindings and TensorRT, none of which runs without a GPU, so that what is
ours around them does: pools, buffers, profiles, graphs. Says nothing about theirs; the tests
of ``tests/gpu`` do.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
import sys
import weakref
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.backends.trt_log import Messages

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

ALIGNMENT = 256
MODULES = (
    *("cuda_device", "trt_context", "trt_device_call", "trt_device", "trt_times"),
    "cuda_lanes",
)
"""What imports PyCUDA, in the order of its imports."""

Array = Any  # what has no types: arrays of any type, modules made here


class Device:
    """Counts what is allocated, and captures what is enqueued while ``capturing``."""

    def __init__(self) -> None:
        self.live: dict[int, Array] = {}
        self.places: dict[int, int] = {}  # of memory that is another GPU's
        self.free_bytes = 1 << 30
        self.depth = 0
        self.captures_fail = False
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.executions = 0
        self.log: list[str] = []
        self.copies = self.captures = 0
        self.held: Array = None  # the flag of a stream that waits for it
        self.waits: list[tuple[int, int]] = []  # who waits for which stream
        self.running: set[int] = set()
        self.faults: list[str] = []
        self._contexts: list[weakref.ref[_Context]] = []

    @property
    def contexts(self) -> list[_Context]:
        """Those that live."""
        return [each for ref in self._contexts if (each := ref()) is not None]

    def add(self, context: _Context) -> None:
        self._contexts.append(weakref.ref(context))

    def do(self, work: Callable[[], None]) -> None:
        assert self.depth > 0, "the device is not current in this thread"
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def at(self, address: int, size: int) -> Array:
        """Return the bytes at an address of the device, which must be allocated."""
        for start, block in self.live.items():
            if start <= address and address + size <= start + block.nbytes:
                return block[address - start : address - start + size]
        raise AssertionError("an address that is not allocated, or was freed")


class OutOfMemoryError(Exception):
    pass


def install(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Put the device in the place of PyCUDA and cuda-bindings until the test ends."""
    device = Device()
    pycuda, driver = ModuleType("pycuda"), ModuleType("pycuda.driver")
    fill_pycuda(driver, device)
    pycuda.driver = driver  # type: ignore[attr-defined]  # a module made here
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    package.bindings = bindings  # type: ignore[attr-defined]  # a module made here
    native = ModuleType("cuda.bindings.driver")
    fill_bindings(native, device)
    fill_pointers(native, device)
    bindings.driver = native  # type: ignore[attr-defined]  # a module made here
    for module in (pycuda, driver, package, bindings, native):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, f"trtbuild.backends.{name}", raising=False)
    for name in MODULES:
        fresh = importlib.import_module(f"trtbuild.backends.{name}")
        monkeypatch.setattr(f"trtbuild.backends.{name}", fresh, raising=False)
    return device


class _Block:
    """Memory that is freed once."""

    def __init__(self, device: Device, size: int) -> None:
        assert size > 0, "CUDA allocates nothing of no size"
        if size > device.free_bytes:
            raise OutOfMemoryError(size)
        device.free_bytes -= size
        room = np.full(size + ALIGNMENT, 0xAB, np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        self.device, self.array = device, room[start : start + size]
        device.live[self.array.ctypes.data] = self.array

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__

    def __int__(self) -> int:
        return int(self.array.ctypes.data)

    def free(self) -> None:
        assert self.device.depth > 0, "freed where the device is not current"
        self.device.free_bytes += self.array.nbytes
        del self.device.live[int(self)]


def fill_pycuda(module: Array, device: Device) -> None:
    class Context:
        def push(self) -> None:
            device.depth += 1

        @staticmethod
        def pop() -> None:
            device.depth -= 1

    class Stream:
        def __init__(self, _flags: int) -> None:
            self.handle = id(self)

        def synchronize(self) -> None:
            assert device.capturing is None, "cannot wait while a stream is captured"
            assert device.held is None or device.held[0] == 1, "waits for a stream that is held"
            device.running.clear()

    class Event:
        at = 0

        def record(self, _stream: object) -> None:
            device.log.append("event")
            self.at = device.executions

        def synchronize(self) -> None:
            assert device.held is None or device.held[0] == 1, "waits for a stream that is held"

        def time_till(self, other: Event) -> float:
            return float(other.at - self.at)

    def copy(to: int, source: int, size: int) -> None:
        device.copies += device.capturing is None
        device.do(lambda: _move(device, to, source, size))

    module.init = lambda: None
    module.Error = OutOfMemoryError
    module.MemoryError = OutOfMemoryError
    module.Context = Context
    module.Device = lambda _index: SimpleNamespace(retain_primary_context=Context)
    module.Stream = Stream
    module.Event = Event
    module.mem_get_info = lambda: (device.free_bytes, 1 << 30)
    module.mem_alloc = lambda size: _Block(device, size)
    module.pagelocked_empty = lambda size, _dtype: np.asarray(_Block(device, size))
    module.memcpy_htod_async = lambda to, host, _s: copy(int(to), host.ctypes.data, host.nbytes)
    module.memcpy_dtoh_async = lambda host, at, _s: copy(host.ctypes.data, int(at), host.nbytes)
    module.memcpy_dtoh = lambda host, at: copy(host.ctypes.data, int(at), host.nbytes)


def _move(device: Device, to: int, source: int, size: int) -> None:
    def found(address: int) -> Array:
        if any(at <= address < at + block.nbytes for at, block in device.live.items()):
            return device.at(address, size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    found(to)[:] = found(source)


class Codes(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


def fill_bindings(module: Array, device: Device) -> None:
    codes = Codes
    done = (codes.CUDA_SUCCESS,)

    def begin(_stream: int, _mode: object) -> tuple[Any, ...]:
        device.capturing = []
        return done

    def end(_stream: int) -> tuple[Any, ...]:
        works, device.capturing = device.capturing or [], None
        if device.captures_fail:
            return codes.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, None
        device.captures += 1
        number = device.captures
        device.graphs[number] = works
        return codes.CUDA_SUCCESS, number

    def launch(graph: int, _stream: int) -> tuple[Any, ...]:
        for work in device.graphs[graph]:
            work()
        return done

    module.CUresult = codes
    module.CUstream = int
    module.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    module.cuEventCreate = lambda _flags: (codes.CUDA_SUCCESS, 1)
    module.cuStreamBeginCapture = begin
    module.cuStreamEndCapture = end
    module.cuGraphInstantiate = lambda graph, _flags: (codes.CUDA_SUCCESS, graph)
    module.cuGraphLaunch = launch
    module.cuGraphDestroy = lambda _graph: done
    module.cuGraphExecDestroy = lambda graph: (device.graphs.pop(graph, None), done)[1]
    last: list[int] = [0]

    def record(_event: int, stream: int) -> tuple[Any, ...]:
        last[0] = stream
        return done

    def wait(stream: int, _event: int, _flags: int) -> tuple[Any, ...]:
        device.waits.append((stream, last[0]))
        return done

    module.cuEventRecord = record
    module.cuStreamWaitEvent = wait
    for name in ("EventDestroy", "StreamSynchronize"):
        setattr(module, f"cu{name}", lambda *_arguments: done)


def fill_pointers(module: Array, device: Device) -> None:
    def pointer_attribute(_attribute: object, address: int) -> tuple[Any, ...]:
        held = any(at <= address < at + block.nbytes for at, block in device.live.items())
        if not held:
            return Codes.CUDA_ERROR_INVALID_VALUE, None
        return Codes.CUDA_SUCCESS, device.places.get(address, 0)

    def wait_value(_stream: int, address: int, value: int, flags: int) -> tuple[Any, ...]:
        assert (value, flags) == (1, 1)
        device.held = device.at(address, 4).view(np.uint32)
        device.log.append("hold")
        return (Codes.CUDA_SUCCESS,)

    module.CUstreamWaitValue_flags = SimpleNamespace(CU_STREAM_WAIT_VALUE_EQ=1)
    module.cuStreamWaitValue32 = wait_value
    module.CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    module.cuPointerGetAttribute = pointer_attribute


class Api:
    """TensorRT with one engine: ``y`` is twice ``x`` (float32, N x 4).

    ``late``: instead the positive elements of ``x``, however many there are. ``exclusive``: a
    profile is one context's, as in 8.6 where it was not built to be shared.
    """

    title = "TensorRT 11.4.0.106"
    logger = None

    def __init__(
        self,
        device: Device,
        *,
        late: bool = False,
        scratch: int = 1024,
        exclusive: bool = False,
    ) -> None:
        self.messages = Messages()
        mode = SimpleNamespace(INPUT=0, OUTPUT=1)
        self.trt = SimpleNamespace(
            TensorIOMode=mode,
            TensorLocation=SimpleNamespace(HOST=1, DEVICE=0),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
            IOutputAllocator=object,
            TempfileControlFlag=SimpleNamespace(ALLOW_IN_MEMORY_FILES=0),
            Runtime=lambda _logger: SimpleNamespace(
                engine_host_code_allowed=True,
                num_DLA_cores=2,
                tempfile_control_flags=3,
                deserialize_cuda_engine=lambda plan: (
                    _Engine(device, late=late, scratch=scratch, exclusive=exclusive)
                    if plan.startswith(b"plan")
                    else None
                ),
            ),
        )

    def dtype(self, found: str) -> str:
        return found


PROFILES = (((1, 4), (2, 4), (4, 4)), ((0, 4), (16, 4), (64, 4)))


class _Engine:
    num_io_tensors = 2
    num_optimization_profiles = len(PROFILES)

    def __init__(self, device: Device, *, late: bool, scratch: int, exclusive: bool) -> None:
        self.device, self.late, self.device_memory_size_v2 = device, late, scratch
        self.exclusive, self.has_served = exclusive, False
        self.users: weakref.WeakSet[_Context] = weakref.WeakSet()

    def is_taken(self, profile: int, by: _Context) -> bool:
        others = [each for each in self.users if each is not by]
        taken = {each.active_optimization_profile for each in others}
        return self.exclusive and profile in taken

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> int:
        return "xy".index(name)

    def get_tensor_location(self, _name: str) -> int:
        return 0

    def get_tensor_dtype(self, _name: str) -> str:
        return "float32"

    def get_tensor_vectorized_dim(self, _name: str) -> int:
        return -1

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if self.late and name == "y" else (-1, 4)

    def get_tensor_profile_shape(self, _name: str, index: int) -> tuple[tuple[int, ...], ...]:
        return PROFILES[index]

    def create_execution_context(self, _strategy: int) -> _Context:
        context = _Context(self)
        self.device.add(context)
        return context


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.active_optimization_profile = -1 if engine.exclusive and engine.has_served else 0
        engine.has_served = True
        engine.users.add(self)
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.allocator: Any = None

    def set_device_memory(self, address: int, size: int) -> None:
        self.engine.device.at(address, size)

    def set_optimization_profile_async(self, index: int, _stream: int) -> bool:
        if self.engine.is_taken(index, self):
            raise RuntimeError("Error in set optimization profile async.")
        self.active_optimization_profile = index
        return True

    def set_input_shape(self, _name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = PROFILES[self.active_optimization_profile]
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if self.engine.late and name == "y" else self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def set_output_allocator(self, _name: str, allocator: Array) -> bool:
        self.allocator = allocator
        return True

    def __del__(self) -> None:
        if id(self) in self.engine.device.running:
            self.engine.device.faults.append("a context is freed while its run may go on")

    def execute_async_v3(self, _stream: int) -> bool:
        if self.engine.device.capturing is None:
            self.engine.device.running.add(id(self))
        self.engine.device.do(self._compute)
        return True

    def _compute(self) -> None:
        device = self.engine.device
        device.log.append("run")
        device.executions += 1
        x = device.at(self.addresses["x"], 16 * self.shape[0]).view(np.float32)
        y = x[x > 0] if self.engine.late else 2 * x
        at = self.addresses.get("y", 0)
        if self.engine.late:
            at = self.allocator.reallocate_output("y", 0, y.nbytes, 256)
            self.allocator.notify_shape("y", y.shape)
        device.at(at, y.nbytes).view(np.float32)[:] = y
