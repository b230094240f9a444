"""Engines of TensorRT proper, built on the GPU of this machine: settings, caches, repeats."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.backends import building, graphs
from trtbuild.backends import gpu_lock, tensorrt
from trtbuild.backends.isolation import build_isolated
from trtbuild.errors import BuildError
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.job import BuildRequest
    from trtbuild.backends.scheme import Scheme
    from trtbuild.engine import Setting

pytestmark = pytest.mark.gpu
LIMITS = Limits(build_seconds=300)


def wish(folder: Path, scheme: Scheme | None = None, **settings: Setting) -> BuildRequest:
    found = tensorrt.targets(())[0]
    if found.cannot_build:
        pytest.skip(found.cannot_build)
    graph = graphs.residual(folder / "m.onnx", scheme)
    return building.request(graph, found.target, folder / "engine", **settings)


def test_a_quantized_network_computes_in_int8(tmp_path: Path) -> None:
    record = build_isolated(wish(tmp_path, tensorrt.SCHEME), LIMITS)
    assert record.layers.unread == ""
    assert record.layers.precision_achieved == {"int8": 3}


@pytest.mark.parametrize(
    "settings",
    [
        {"refit": True},
        {"refit": True, "strip_plan": True},
        {"version_compatible": True},
        {"hardware_compatible": "ampere_plus"},
        {"weight_streaming": True},
        {"strict_nans": True, "direct_io": True, "max_aux_streams": 1},
        {"tiling_optimization_level": "fast", "max_num_tactics": 4},
    ],
    ids="-".join,
)
def test_settings_are_taken(settings: dict[str, Setting], tmp_path: Path) -> None:
    record = build_isolated(wish(tmp_path, None, **settings), LIMITS)
    assert record.layers.unread == ""
    assert record.layers.layers


def test_a_timing_cache_grows_and_a_pinned_one_does_not(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = msgspec.structs.replace(wish(tmp_path), timing_cache=cache)
    build_isolated(first, LIMITS)
    content = cache.read_bytes()
    assert content
    mode = f"pinned:{hashlib.sha256(content).hexdigest()}"
    pinned = msgspec.structs.replace(first, settings=(("timing_cache", mode),))
    build_isolated(pinned, LIMITS)
    assert cache.read_bytes() == content
    cache.write_bytes(content + b"x")
    with pytest.raises(BuildError, match="another timing cache"):
        build_isolated(pinned, LIMITS)


def test_the_fastest_of_several_engines_is_kept(tmp_path: Path) -> None:
    record = build_isolated(wish(tmp_path, build_repeats=3), LIMITS)
    assert record.layers.precision_achieved == {"fp32": 3}


def test_builds_of_one_gpu_take_turns(tmp_path: Path) -> None:
    """C5: who builds holds the GPU's lock, so two commands never time kernels at once."""
    request = wish(tmp_path)
    with gpu_lock.one_of(tensorrt.gpus(request.target), pytest.fail) as bus:
        record = build_isolated(msgspec.structs.replace(request, gpu=bus), LIMITS)
        assert record.layers.layers
        command = [sys.executable, "-c", _TAKES, bus]
        taken = subprocess.run(command, capture_output=True, text=True, check=True)
    assert taken.stdout == "waiting\n"


_TAKES = """
import sys
from trtbuild.backends import gpu_lock
def said(text):
    print(text.split()[0])
    sys.exit()
with gpu_lock.one_of((sys.argv[1],), said):
    print("taken")
"""
