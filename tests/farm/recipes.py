"""A folder of recipes around one small model: good ones, and each way to go wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
ELSEWHERE = "onnxruntime:riscv64"
"""A target that no machine of the tests can build."""

# The metric is the share of outputs that int8 leaves alone to four digits: next to none.
PROVIDER = """\
import numpy as np

WEIGHT = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
METRIC_NAME = "unchanged"


def _batches(seed):
    random = np.random.default_rng(seed)
    for _ in range(4):
        yield {"x": random.standard_normal((8, 16)).astype(np.float32)}


def calibration_batches():
    return _batches(1)


def evaluation_batches():
    return _batches(2)


def metric(outputs, batch):
    right = np.maximum(batch["x"] @ WEIGHT, 0) @ WEIGHT
    return np.isclose(outputs["y"], right, atol=1e-4).mean(axis=1)
"""

RAISES = PROVIDER.replace("return _batches(1)", "raise RuntimeError('the disk is empty')")
DIES = PROVIDER.replace(
    "return _batches(1)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
)

FLOAT = '[source]\nonnx = "model.onnx"\n[build]\ntargets = ["onnxruntime"]\n'


def int8(provider: str, max_drop: float, *targets: str) -> str:
    """Return a recipe that quantizes with the data of ``provider``."""
    named = ", ".join(f'"{target}"' for target in targets)
    return (
        '[source]\nonnx = "model.onnx"\n'
        f'[quantization]\nprecision = "int8"\nprovider = "{provider}"\nmethod = "minmax"\n'
        f"[build]\ntargets = [{named}]\n"
        f"[gates]\nmax_drop = {max_drop}\n"
    )


GOOD = {
    "float": FLOAT,
    "lenient": int8("provider.py", 1.0, "onnxruntime", ELSEWHERE),
}
BAD = {
    "broken": '[source\nonnx = "model.onnx"',
    "dies": int8("dies.py", 1.0, "onnxruntime"),
    "elsewhere": FLOAT.replace("onnxruntime", ELSEWHERE),
    "raises": int8("raises.py", 1.0, "onnxruntime"),
    "strict": int8("provider.py", 0.01, "onnxruntime"),
    "unknown": FLOAT.replace("onnxruntime", "cuda"),
}


def make_folder(top: Path, recipes: Mapping[str, str]) -> Path:
    """Write model, data and recipes below ``top`` and return the folder of the recipes."""
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 16])
        for name in ("x", "y")
    )
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["product"], name="first"),
        helper.make_node("Relu", ["product"], ["positive"], name="relu"),
        helper.make_node("Gemm", ["positive", "w"], ["y"], name="second"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), top / "model.onnx")
    for name, code in {"provider": PROVIDER, "raises": RAISES, "dies": DIES}.items():
        (top / f"{name}.py").write_text(code)
    folder = top / "engines"
    folder.mkdir()
    for name, text in recipes.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def trtbuild(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line and return how it ended."""
    return subprocess.run(
        [sys.executable, "-m", "trtbuild", *map(str, arguments)],
        cwd=ROOT,
        env=None if environment is None else dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
