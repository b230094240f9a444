"""What an engine says of itself, by the names of old and new versions, and how it is opened."""

from __future__ import annotations

import hashlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import trtbuild.backends
from trtbuild.backends import trt_plugins, trt_session
from trtbuild.backends.profile_choice import Bounds
from trtbuild.backends.session import Attached, Plan, SessionOptions
from trtbuild.backends.trt_engine import Engine
from trtbuild.backends.trt_log import Messages
from trtbuild.errors import MissingBackendError, TrustError

VALUES = ([1, 8], [4, 8], [16, 8])


class Deserialized:
    """An engine with one input, ``sizes``, that is a shape: its own shape is [2]."""

    num_io_tensors = num_optimization_profiles = 1
    device_memory_size = 1024

    def __init__(self, **members: object) -> None:
        vars(self).update(members)

    def get_tensor_name(self, _index: int) -> str:
        return "sizes"

    def get_tensor_mode(self, _name: str) -> int:
        return 0

    def get_tensor_location(self, _name: str) -> int:
        return 1

    def get_tensor_dtype(self, _name: str) -> str:
        return "int32"

    def get_tensor_vectorized_dim(self, _name: str) -> int:
        return -1

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return (2,)

    def get_tensor_profile_shape(self, _name: str, _index: int) -> tuple[tuple[int, ...], ...]:
        return ((2,), (2,), (2,))


class Api:
    title = "TensorRT 8.6.1"
    backend = "tensorrt"
    logger = None

    def __init__(
        self, engine: Deserialized | None = None, error: str = "", **members: object
    ) -> None:
        self.messages = Messages()

        def deserialize(_plan: bytes) -> Deserialized | None:
            if error:
                self.messages.take("ERROR", error)
            return engine

        runtime = SimpleNamespace(
            engine_host_code_allowed=False, deserialize_cuda_engine=deserialize
        )
        self.trt = SimpleNamespace(
            TensorIOMode=SimpleNamespace(INPUT=0),
            TensorLocation=SimpleNamespace(HOST=1),
            Runtime=lambda _logger: runtime,
            **members,
        )

    def dtype(self, found: str) -> str:
        return found


def opened(found: Any) -> Engine:  # noqa: ANN401  stands for an Api
    return Engine(Plan(engine=b"plan"), found, SessionOptions(), lambda: 1 << 30)


@pytest.mark.parametrize("name", ["get_tensor_profile_values", "get_profile_shape_input"])
def test_the_bounds_of_a_shape_are_its_values_in_every_version(name: str) -> None:
    engine = opened(Api(Deserialized(**{name: lambda _profile, _name: VALUES})))
    assert engine.profiles == ({"sizes": Bounds(min=(1, 8), opt=(4, 8), max=(16, 8))},)


def test_too_little_memory_for_an_engine_is_no_fault_of_its_bytes() -> None:
    said = "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)"
    with pytest.raises(MissingBackendError, match=r"no memory .*out of memory.*nvidia-smi"):
        opened(Api(error=said))
    with pytest.raises(TrustError, match="refuses the engine: Magic tag"):
        opened(Api(error="Magic tag does not match"))


def test_kernels_that_contexts_share_live_as_long_as_the_engine() -> None:
    class Config:
        def set_execution_context_allocation_strategy(self, _strategy: str) -> None: ...

        def create_runtime_cache(self) -> str:
            return "kernels"

        def set_runtime_cache(self, _kernels: str) -> None: ...

    engine = opened(
        Api(
            Deserialized(create_runtime_config=Config),
            IRuntimeConfig=SimpleNamespace(create_runtime_cache=None),
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
        )
    )
    assert engine._kernels == "kernels"  # noqa: SLF001  nobody else holds it
    engine.close()
    assert engine._kernels is None  # noqa: SLF001  as above


def test_plug_ins_are_loaded_into_a_lean_runtime_which_has_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(trt_plugins, "load", lambda *given: loaded.append(given[-1]))
    found: Any = Api()
    library = b"plug-in"
    digest = hashlib.sha256(library).hexdigest()
    trt_session.load_plugins(found, Attached(plugins=(library,), plugin_digests=digest), "it")
    assert loaded == ["it"]


def test_a_driver_older_than_pycuda_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "trtbuild.backends.trt_device"
    monkeypatch.delattr(trtbuild.backends, "trt_device", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    machine = trt_session.Machine(
        os="linux-x86_64",
        gpus=(("sm_90", "H100"),),
        absence="",
        driver=(12, 4),
        installed=None,
        missing=(),
    )
    with pytest.raises(MissingBackendError, match=r"is for CUDA 12\.4: .*newer driver"):
        trt_session._require_pycuda(machine)  # noqa: SLF001  what opens every engine


def test_measuring_engines_drops_no_finding_of_their_build() -> None:
    """Several are built, opened and timed in one process, and then the findings are read."""
    found = Api(Deserialized())
    found.messages.take("WARNING", "weights were rounded to zero")
    engine = opened(found)
    found.messages.take("ERROR", "of a call")
    engine.forget()
    assert not engine.logged_errors()
    assert found.messages.warnings == ["weights were rounded to zero"]
    for number in range(3000):  # and a service that runs for months keeps few
        found.messages.take("WARNING", f"{number}")
    assert len(found.messages.warnings) == 1000
