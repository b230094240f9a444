"""Layers are timed in the very engine that sessions open: its code, weights, libraries, GPU."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from tests.runtime import simulated
from tests.store.engines import engine_key, put_engine
from trtbuild.backends import gpu, trt_refit, trt_session
from trtbuild.backends.session import Attached, Plan, SessionOptions
from trtbuild.engine import Manifest, Target, TensorSpec
from trtbuild.errors import MissingBackendError
from trtbuild.pipeline import layer_times
from trtbuild.runtime import admission
from trtbuild.runtime.made_here import mark_made
from trtbuild.store import Store, make_record

if TYPE_CHECKING:
    from pathlib import Path

    from tests.runtime.simulated import Array

TARGET = Target(backend="tensorrt", arch="sm_90", os="linux-x86_64", device="H100")
GPUS = (("sm_90", "H200"), ("sm_90", "H100"))


class Api(simulated.Api):
    """A library whose profiler takes note of layers: one, that takes 2 ms."""

    backend = "tensorrt"

    def __init__(self, device: simulated.Device, *, late: bool = False) -> None:
        super().__init__(device, late=late)
        self.codes: list[bool] = []
        self.runtimes: list[Array] = []
        make = self.trt.Runtime
        self.trt.Runtime = lambda logger: self._seen(make(logger))
        self.trt.IProfiler = type("IProfiler", (), {"__init__": lambda _: None})
        self.trt.init_libnvinfer_plugins = lambda *_: True

    def _seen(self, runtime: Array) -> Array:
        deserialize = runtime.deserialize_cuda_engine
        self.runtimes.append(runtime)

        def open_engine(plan: bytes) -> Array:
            self.codes.append(runtime.engine_host_code_allowed)
            engine = deserialize(plan)
            create = engine.create_execution_context
            engine.create_execution_context = lambda strategy: _reporting(create(strategy))
            return engine

        runtime.deserialize_cuda_engine = open_engine
        return runtime


def _reporting(context: Array) -> Array:
    run = context.execute_async_v3

    def execute(stream: int) -> bool:
        context.profiler.report_layer_time("conv", 2.0)
        return bool(run(stream))

    context.execute_async_v3 = execute
    return context


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> simulated.Device:
    return simulated.install(monkeypatch)


X = np.ones((2, 4), np.float32)


def test_all_memory_is_given_back(device: simulated.Device) -> None:
    times = importlib.import_module("trtbuild.backends.trt_times")
    api, plan = Api(device), Plan(engine=b"plan", dla_core=1)
    found = times.engine_layer_ms(plan, 0, api, SessionOptions(), {"x": X})
    assert found == {"conv": 2.0}
    assert api.runtimes[-1].DLA_core == 1
    assert device.executions > 20
    assert device.live == {}
    device.free_bytes = 1030  # enough for what the context works in, not for an input
    with pytest.raises(MissingBackendError):
        times.engine_layer_ms(plan, 0, api, SessionOptions(), {"x": X})
    assert device.live == {}
    assert device.depth == 0


def test_an_engine_is_opened_as_a_session_opens_it(
    device: simulated.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = Api(device)
    given: list[object] = []
    indices: list[int] = []
    cuda = importlib.import_module("trtbuild.backends.cuda_device")
    real = cuda.device

    def chosen(index: int) -> object:
        indices.append(index)
        return real(index)

    monkeypatch.setattr(cuda, "device", chosen)
    monkeypatch.setattr(trt_session, "load_api", lambda *_: api)
    monkeypatch.setattr(trt_session, "lacks", lambda *_: "")
    library = SimpleNamespace(module="tensorrt")
    found = [SimpleNamespace(arch=arch, identity=name) for arch, name in GPUS]
    monkeypatch.setattr(gpu, "gpus", lambda: found)
    monkeypatch.setattr(gpu, "pci_bus_ids", lambda: ("0000:01:00.0", "0000:02:00.0"))
    machine = SimpleNamespace(gpus=GPUS, installed=library, os=TARGET.os)
    monkeypatch.setattr(trt_session, "here", lambda _: machine)
    monkeypatch.setattr(layer_times, "preflight", lambda *_: None)
    monkeypatch.setattr(trt_session, "load_plugins", lambda _, needs, __: given.append(needs))
    monkeypatch.setattr(trt_refit, "give", lambda _api, _engine, source: given.append(source))
    monkeypatch.setattr(trt_refit, "onnx_bytes", lambda model: model)
    monkeypatch.setenv("TRTBUILD_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(admission, "_header_problem", lambda *_: "")  # no plan, a few bytes
    store = Store.open(str(tmp_path / "store"))
    manifest = _manifest(store)
    timed = layer_times.timed_layers(store, manifest, pytest.fail)
    assert indices == [1]
    assert api.codes == [True]
    plugin = dict(manifest.preimage.settings)["plugins"]
    needs = Attached(plugins=(b"library",), plugin_digests=str(plugin), weights=b"network")
    assert given == [needs, b"network"]
    assert [layer.milliseconds for layer in timed.layers] == [2.0]


def _manifest(store: Store) -> Manifest:
    settings: dict[str, Any] = {
        "plugins": store.put_bytes("plugin-0", b"library").sha256,
        "strip_plan": True,
        "version_compatible": True,
    }
    key = msgspec.structs.replace(
        engine_key("sm_90", 3), settings=tuple(settings.items()), target=TARGET, profiles=()
    )
    template = put_engine(Store.open(f"{store.root}-other"), key, b"plan").read(Manifest)
    (layer, *_) = template.layers.layers
    layers = msgspec.structs.replace(
        template.layers, layers=(msgspec.structs.replace(layer, engine_name="conv"),)
    )
    manifest = msgspec.structs.replace(
        template,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 4)),),
        layers=layers,
        weights_sha256=store.put_bytes("weights", b"network").sha256,
    )
    blob = store.put_bytes("engine", b"plan")
    mark_made(store.put(make_record("engine", key.digest, key, manifest, (blob,))))
    return manifest
