"""What is opened to be measured is opened as its settings need it: code, libraries, the GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from tests.backends import building, graphs
from tests.store.engines import engine_key, put_engine
from trtbuild.backends import gpu, trt_repeats
from trtbuild.backends.session import Attached, SessionOptions
from trtbuild.engine import Manifest, Target
from trtbuild.pipeline import verification
from trtbuild.runtime import admission
from trtbuild.runtime.made_here import mark_made
from trtbuild.store import Store

if TYPE_CHECKING:
    from pathlib import Path

HOPPER = Target(backend="tensorrt", arch="sm_90", os="linux-x86_64", device="H100")
Opened = list[tuple[SessionOptions, Attached]]


class _Session:
    def run(self, feeds: dict[str, Any]) -> None:
        assert all(isinstance(array, np.ndarray) for array in feeds.values())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Sessions that compute nothing; how they were opened."""
    found: Opened = []

    def open_session(
        _engine: bytes,
        _target: Target,
        options: SessionOptions,
        attached: Attached,
        **_more: object,
    ) -> _Session:
        found.append((options, attached))
        return _Session()

    module = SimpleNamespace(open_session=open_session)
    monkeypatch.setattr(verification, "runtime", lambda _: module)
    monkeypatch.setattr(trt_repeats, "runtime", lambda _: module)
    return found


@pytest.mark.parametrize("compatible", [False, True])
def test_an_engine_is_verified_with_the_runtime_that_it_brings(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, compatible: bool
) -> None:
    monkeypatch.setenv("TRTBUILD_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(admission, "_header_problem", lambda *_: "")  # no plan, a few bytes
    store = Store.open(str(tmp_path / "store"))
    settings = (("version_compatible", compatible),)
    key = msgspec.structs.replace(engine_key("sm_90", 3), settings=settings)
    record = put_engine(store, key, b"engine")
    mark_made(record)
    manifest = record.read(Manifest)
    context: Any = SimpleNamespace(store=store)
    built: Any = SimpleNamespace(manifest=manifest, planned=SimpleNamespace(target=HOPPER))
    verification._device_session(context, built)  # noqa: SLF001  the one place that opens one
    assert opened == [(SessionOptions(allow_host_code=compatible), Attached())]


def test_repeats_are_measured_on_the_gpu_that_built_them(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "pci_bus_ids", lambda: ("0000:01:00.0", "0000:02:00.0"))
    graph = graphs.residual(tmp_path / "m.onnx", None)
    wish = building.request(graph, HOPPER, tmp_path / "engine", version_compatible=True)
    library = tmp_path / "plugin.so"
    library.write_bytes(b"library")
    wish = msgspec.structs.replace(
        wish,
        gpu="0000:02:00.0",
        plugins=(library,),
        settings=(*wish.settings, ("plugins", "digest")),
    )
    times = trt_repeats.measure([b"one", b"two"], wish)
    assert [len(each) for each in times] == [50, 50]
    expected = (
        SessionOptions(allow_host_code=True, device=1),
        Attached(plugins=(b"library",), plugin_digests="digest"),
    )
    assert opened == [expected, expected]
