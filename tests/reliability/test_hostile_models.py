"""Models that are far larger than they look, or contain themselves, through the command."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SECONDS = 120
MEMORY_BYTES = 8 << 30
TYPED = {2, 3, 4, 5, 6}
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])


def model(*nodes: onnx.NodeProto, functions: tuple[onnx.FunctionProto, ...] = ()) -> bytes:
    graph = helper.make_graph(list(nodes), "g", [value("x")], [value("y")])
    proto = helper.make_model(graph, opset_imports=OPSETS, ir_version=8, functions=functions)
    return bytes(proto.SerializeToString())


def function(name: str, calls: str) -> onnx.FunctionProto:
    node = helper.make_node(calls, ["a"], ["b"], domain="own")
    return helper.make_function("own", name, ["a"], ["b"], [node], OPSETS)


def nodes_in_a_circle() -> bytes:
    first = helper.make_node("Add", ["x", "b"], ["y"])
    return model(first, helper.make_node("Relu", ["y"], ["b"]))


def node_of_itself() -> bytes:
    return model(helper.make_node("Add", ["x", "y"], ["y"]))


def functions_in_a_circle() -> bytes:
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    return model(call, functions=(function("f", "g"), function("g", "f")))


def function_of_itself() -> bytes:
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    return model(call, functions=(function("f", "f"),))


def branch_of_its_own_output() -> bytes:
    branch = helper.make_graph([helper.make_node("Relu", ["y"], ["z"])], "b", [], [value("z")])
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    return model(*nodes)


def deep_branches() -> bytes:
    """Written by hand: protobuf's own writer gives up at such a depth."""
    inner = b""
    for _ in range(400):
        attribute = b"\x0a\x01g" + b"\xa0\x01\x05" + b"\x32" + length(inner) + inner
        node = b"\x22\x02If" + b"\x2a" + length(attribute) + attribute
        inner = b"\x0a" + length(node) + node
    return b"\x08\x08" + b"\x3a" + length(inner) + inner


def length(data: bytes) -> bytes:
    return varint(len(data))


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def graph_of_2_gb() -> bytes:
    return b"\x08\x08\x3a" + varint(2**31) + b"\x0a\x00"


def bytes_of_2_gb() -> bytes:
    tensor = b"\x08\x01\x10\x01\x4a" + varint(2**31 - 64) + bytes(64)
    return b"\x08\x08\x3a" + varint(len(tensor) + 2) + b"\x2a" + length(tensor) + tensor


def length_beyond_64_bits() -> bytes:
    return b"\x08\x08\x3a" + b"\xff" * 9 + b"\x01" + b"\x0a\x00"


def dimensions_of_2_gb() -> bytes:
    proto = onnx.load_model_from_string(model(helper.make_node("Add", ["x", "w"], ["y"])))
    proto.graph.initializer.append(
        TensorProto(name="w", data_type=1, dims=[2**31, 2**31], raw_data=bytes(4))
    )
    return bytes(proto.SerializeToString())


CASES = (
    nodes_in_a_circle,
    node_of_itself,
    functions_in_a_circle,
    function_of_itself,
    branch_of_its_own_output,
    deep_branches,
    graph_of_2_gb,
    bytes_of_2_gb,
    length_beyond_64_bits,
    dimensions_of_2_gb,
)


def built(data: bytes, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Return how the command ended on a model, with 8 GiB of address space at most."""
    (folder / "m.onnx").write_bytes(data)
    command = [sys.executable, "-m", "trtbuild", "engine", str(folder / "m.onnx")]
    command += ["--precision", "fp32", "--backend", "onnxruntime", "-q"]
    return subprocess.run(
        [*command, "--store", str(folder / "store")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES,) * 2),
    )


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_model_that_is_no_finite_one_is_a_typed_error(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    """S2."""
    done = built(make(), tmp_path, SECONDS)
    assert done.returncode in TYPED, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: "), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("count", [20_000, pytest.param(10**6, marks=pytest.mark.nightly)])
def test_a_model_of_many_initializers_builds_or_says_why_not(
    count: int, tmp_path: Path
) -> None:
    proto = onnx.load_model_from_string(model(helper.make_node("Relu", ["x"], ["y"])))
    one = TensorProto(data_type=TensorProto.FLOAT, dims=[1], raw_data=bytes(4))
    for index in range(count):
        one.name = f"w{index}"
        proto.graph.initializer.append(one)
    done = built(proto.SerializeToString(), tmp_path, 120 if count < 10**6 else 1800)
    assert done.returncode in {0, *TYPED}, done.stderr
    assert "Traceback" not in done.stderr
