"""Every name of PyCUDA, cuda-bindings and TensorRT's lean runtime that we use exists.

PyCUDA is the one that ``.ci/stub-pycuda`` has built (``TRTBUILD_STUB_PYCUDA`` names its
folder), or one that is installed beside a driver.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtbuild.backends import gpu

ROOT = Path(__file__).parents[2]
BACKENDS = ROOT / "trtbuild/backends"
STUB = os.environ.get("TRTBUILD_STUB_PYCUDA", "")

NAMES = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
def missing(path):
    value = module
    for part in path.split("."):
        if not hasattr(value, part):
            return True
        value = getattr(value, part)
    return False
print(json.dumps([path for path in json.loads(sys.argv[2]) if missing(path)]))
"""


def used(line: str, name: str) -> list[str]:
    """Return the attributes, dotted, that modules with an import read of its ``name``."""
    texts = [path.read_text() for path in sorted(BACKENDS.glob("*.py"))]
    found = set()
    for node in (n for t in texts if line in t for n in ast.walk(ast.parse(t))):
        parts: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id == name:
            found.add(".".join(reversed(parts)))
    return sorted(found - {"CUresult.CUDA_SUCCESS.name"})


def missing(module: str, names: list[str], environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", NAMES, module, json.dumps(names)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    result: list[str] = json.loads(done.stdout)
    return result


def test_every_name_of_pycuda_exists() -> None:
    environment = {}
    if STUB:
        environment = {"PYTHONPATH": f"{STUB}/site", "LD_LIBRARY_PATH": f"{STUB}/stub"}
    elif importlib.util.find_spec("pycuda") is None or not gpu.archs():
        pytest.skip(
            "no PyCUDA beside a driver: .ci/stub-pycuda FOLDER PYTHON builds one with nvcc"
        )
    names = used("import pycuda.driver as cuda", "cuda")
    assert {"mem_alloc", "pagelocked_empty", "Context.pop", "memcpy_htod_async"} <= set(names)
    assert {"Event", "mem_get_info"} <= set(names)
    assert (
        missing("pycuda.driver", [*names, "Stream.synchronize", "Stream.handle"], environment)
        == []
    )
    assert missing("pycuda.driver", ["Device.retain_primary_context"], environment) == []
    assert (
        missing(
            "pycuda.driver",
            ["DeviceAllocation.free", "Context.push", "Event.time_till"],
            environment,
        )
        == []
    )


def test_every_name_of_cuda_bindings_exists() -> None:
    pytest.importorskip("cuda.bindings", reason="no cuda-bindings: pip install cuda-bindings")
    names = used("from cuda.bindings import driver", "driver")
    assert {"cuStreamBeginCapture", "cuGraphLaunch", "cuStreamWaitEvent"} <= set(names)
    assert {"cuStreamWaitValue32", "cuPointerGetAttribute"} <= set(names)
    assert missing("cuda.bindings.driver", names, {}) == []


RUNTIME = (
    "Runtime.deserialize_cuda_engine",
    "Runtime.engine_host_code_allowed",
    "TensorIOMode.INPUT",
    "TensorLocation.HOST",
    "IOutputAllocator",
    *(
        f"ICudaEngine.{name}"
        for name in [
            "create_execution_context",
            "get_tensor_name",
            "num_io_tensors",
            "get_tensor_mode",
            "get_tensor_location",
            "get_tensor_dtype",
            "get_tensor_shape",
            "get_tensor_vectorized_dim",
            "get_tensor_profile_shape",
            "num_optimization_profiles",
        ]
    ),
    *(
        f"IExecutionContext.{name}"
        for name in [
            "execute_async_v3",
            "set_input_shape",
            "set_tensor_address",
            "infer_shapes",
            "get_tensor_shape",
            "set_output_allocator",
            "set_optimization_profile_async",
            "active_optimization_profile",
        ]
    ),
)
"""What is used without asking whether it is there (``trt_engine.py``, ``trt_context.py``)."""


@pytest.mark.parametrize("module", ["tensorrt_rtx", "tensorrt_lean"])
def test_every_name_of_a_runtime_exists(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    newer = [
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "ICudaEngine.device_memory_size_v2",
        "Runtime.tempfile_control_flags",
        "TempfileControlFlag.ALLOW_IN_MEMORY_FILES",
    ]
    assert missing(module, [*RUNTIME, *newer], {}) == []


def test_a_builder_finds_the_lean_runtime_by_its_bare_name() -> None:
    found = importlib.util.find_spec("tensorrt_lean_libs")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-lean is not installed")
    (library,) = Path(found.origin).parent.glob("libnvinfer_lean.so.*")
    program = (
        "import ctypes; from trtbuild.backends.trt_api import load_lean; load_lean(); "
        f"ctypes.CDLL({library.name!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
