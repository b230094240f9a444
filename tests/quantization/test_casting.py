"""FP16 and BF16 graphs: valid, the interface kept, overflow seen, every kept node named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from tests.graph import models
from tests.quantization import networks
from trtbuild.graph.model import load_model
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.casting import Casting, cast_graph, float_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.graph import Graph
    from trtbuild.quantization.casting import Kept

Low = Literal["fp16", "bf16"]
LOWS = pytest.mark.parametrize("low", ["fp16", "bf16"])


def cast(
    graph: Graph, low: Low, *, emulated: bool = False, data: Array | None = None
) -> tuple[Graph, tuple[Kept, ...]]:
    """Return the graph cast, and the nodes kept; ranges are those of ``data``."""
    amax = {}
    if data is not None:
        found = networks.measure(graph, float_tensors(graph), [data])
        amax = {name: item.amax for name, item in found.items()}
    plan = Casting(precision=low, amax=amax, emulated=emulated)
    out = graph.path.parent / f"{low}-{emulated}.onnx"
    result, kept = cast_graph(graph, plan, out)
    onnx.checker.check_model(str(result.path), full_check=True)
    assert (result.inputs, result.outputs) == (graph.inputs, graph.outputs)
    return result, kept


def optimized(folder: Path, text: str, weights: Mapping[str, Array]) -> Graph:
    """Write a model as the pipeline hands it on: every tensor has its type."""
    return optimize(models.write(folder / "source.onnx", text, weights), folder / "m.onnx")[0]


def types(path: Path) -> dict[str, ir.DataType | None]:
    """Return the type of each node's first output by the node's name."""
    return {node.name or "": node.outputs[0].dtype for node in load_model(path).graph}


def bfloat16(array: Array) -> Array:
    """Round float32 to bfloat16, to nearest even, by hand: the upper half of the bits."""
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def test_a_network_in_fp16_computes_nearly_the_same(tmp_path: Path) -> None:
    graph = networks.network(tmp_path)
    images = networks.images(16)
    result, kept = cast(graph, "fp16", data=images)
    assert kept == ()
    compute = [n for n in types(result.path) if n.startswith(("Conv", "Gemm"))]
    assert {types(result.path)[name] for name in compute} == {ir.DataType.FLOAT16}
    feeds = {"x": networks.images(4, seed=1)}
    expected, got = models.run(graph.path, feeds), models.run(result.path, feeds)
    for name, array in expected.items():
        assert got[name].dtype == np.float32
        assert models.sqnr_db(array, got[name]) > 50


def test_a_network_in_bf16_is_what_its_twin_computes_in_fp32(tmp_path: Path) -> None:
    graph = networks.network(tmp_path)
    result, kept = cast(graph, "bf16")
    twin, kept_in_twin = cast(graph, "bf16", emulated=True)
    assert kept == kept_in_twin
    compute = [n for n in types(result.path) if n.startswith(("Conv", "Gemm"))]
    assert {types(result.path)[name] for name in compute} == {ir.DataType.BFLOAT16}
    assert {types(twin.path)[name] for name in compute} == {ir.DataType.FLOAT}
    feeds = {"x": networks.images(4, seed=1)}
    expected, got = models.run(graph.path, feeds), models.run(twin.path, feeds)
    for name, array in expected.items():
        assert 25 < models.sqnr_db(array, got[name]) < 60


@LOWS
def test_a_weight_is_stored_once_in_its_new_type(low: Low, tmp_path: Path) -> None:
    text = "g (float[b,16] x) => (float[b,8] y) { y = MatMul(x, w) }"
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    graph = optimized(tmp_path, text, {"w": weight})
    stored = load_model(cast(graph, low)[0].path).graph.initializers.values()
    assert [(each.dtype, tuple(each.shape or ())) for each in stored] == [
        (ir.DataType.FLOAT16 if low == "fp16" else ir.DataType.BFLOAT16, (16, 8))
    ]


def test_the_twin_of_one_product_rounds_operands_and_result(tmp_path: Path) -> None:
    text = "g (float[N, 16] x) => (float[N, 8] y) { y = MatMul(x, w) }"
    weight, x = models.normal(16, 8), models.normal(5, 16, seed=1)
    graph = optimized(tmp_path, text, {"w": weight})
    twin, _ = cast(graph, "bf16", emulated=True)
    exact = bfloat16(x).astype(np.float64) @ bfloat16(weight).astype(np.float64)
    expected = bfloat16(exact.astype(np.float32))
    got = models.run(twin.path, {"x": x})["y"]
    # FP32 sums may fall on the other side of a rounding edge: one step of 2^-8 then.
    np.testing.assert_allclose(got, expected, rtol=2**-7)
    assert np.mean(got == expected) > 0.95
    np.testing.assert_array_equal(bfloat16(got), got)


def test_a_node_that_overflows_stays_in_fp32_and_is_named(tmp_path: Path) -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) {
        a = Relu(x) b = Mul(a, k) c = Mul(b, j) y = Neg(c)
    }"""
    weights = {"k": np.full(1, 1e5, "f4"), "j": np.full(1, 1e-5, "f4")}
    graph = optimized(tmp_path, text, weights)
    data = 1 + np.abs(models.normal(8, 4))
    result, kept = cast(graph, "fp16", data=data)
    assert [item.node for item in kept] == ["Mul_1", "Mul_2"]
    assert all("b reaches" in item.reason and "65504" in item.reason for item in kept)
    assert types(result.path)["Relu_0"] == ir.DataType.FLOAT16
    assert types(result.path)["Mul_1"] == ir.DataType.FLOAT
    expected, got = models.run(graph.path, {"x": data}), models.run(result.path, {"x": data})
    np.testing.assert_allclose(got["y"], expected["y"], rtol=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N, 4] x) => (float[N, 4] y) { a = Mul(x, j) y = Neg(a) }",
        "g (float[N, 4] x) => (float[N, 4] y) { a = Mul(x, j) y = Mul(a, k) }",
    ],
    ids=["input", "output"],
)
def test_inputs_and_outputs_that_overflow_are_seen_too(text: str, tmp_path: Path) -> None:
    factors = (1e-5, 1.0, 1e5) if "Neg" in text else (1.0, 1e5, 1.0)
    weights = {"j": np.full(1, factors[0], "f4")}
    if "k)" in text:
        weights["k"] = np.full(1, factors[1], "f4")
    graph = optimized(tmp_path, text, weights)
    data = (1 + np.abs(models.normal(8, 4))) * np.float32(factors[2])
    result, kept = cast(graph, "fp16", data=data)
    assert len(kept) == 1
    expected, got = models.run(graph.path, {"x": data}), models.run(result.path, {"x": data})
    np.testing.assert_allclose(got["y"], expected["y"], rtol=2e-3)


@LOWS
def test_constants_beyond_the_type_are_clamped(low: Low, tmp_path: Path) -> None:
    """An attention mask: minus the largest float32 must not become minus infinity."""
    text = """g (float[N, 4] x, bool[N, 4] keep) => (float[N, 4] y) {
        m = Where(keep, nought, lowest) a = Add(x, m) b = Add(a, m) y = Softmax(b)
    }"""
    weights = {
        "nought": np.zeros(1, "f4"),
        "lowest": np.full(1, np.finfo(np.float32).min, "f4"),
    }
    graph = optimized(tmp_path, text, weights)
    result, _ = cast(graph, low)
    values = load_model(result.path).graph.initializers.values()
    arrays = [v.const_value.numpy().astype(np.float64) for v in values if v.const_value]
    assert all(np.isfinite(array).all() for array in arrays)
    assert min(array.min() for array in arrays) < -65000


CASTS = """g (float[N, 4] x, int64[N, 4] i)
    => (float[N, 4] y, int64[N, 4] whole, bool[N, 4] some) {
    h = Relu(x) whole = Cast<to = 7>(h) some = Cast<to = 9>(h) f = Cast<to = 1>(i)
    s = Shape(h) n = ConstantOfShape(s) o = ConstantOfShape<value = float[1] {0.5}>(s)
    e = EyeLike<dtype = 1>(h) a = Add(f, n) b = Add(a, o) y = Add(b, e)
}"""


@LOWS
def test_nodes_that_name_a_type_get_the_right_one(low: Low, tmp_path: Path) -> None:
    graph = optimized(tmp_path, CASTS, {})
    result, kept = cast(graph, low)
    dtype = ir.DataType.FLOAT16 if low == "fp16" else ir.DataType.BFLOAT16
    found = types(result.path)
    assert [found[f"Cast_{i}"] for i in (1, 2, 3)] == [
        ir.DataType.INT64,
        ir.DataType.BOOL,
        dtype,
    ]
    assert [found[f"ConstantOfShape_{i}"] for i in (5, 6)] == [dtype, dtype]
    assert [item.node for item in kept] == ["EyeLike_7"]
    feeds = {"x": np.abs(models.normal(4, 4)) * 3, "i": np.arange(16).reshape(4, 4)}
    twin = result if low == "fp16" else cast(graph, low, emulated=True)[0]
    expected, got = models.run(graph.path, feeds), models.run(twin.path, feeds)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@LOWS
def test_operators_without_a_low_form_stay_and_are_named(low: Low, tmp_path: Path) -> None:
    text = """g (float[1, 6, 4] boxes, float[1, 1, 6] scores) => (int64[?, 3] y) {
        b = Relu(boxes) s = Sigmoid(scores) y = NonMaxSuppression(b, s, n, t)
    }"""
    weights = {"n": np.array([3]), "t": np.full(1, 0.5, "f4")}
    graph = optimized(tmp_path, text, weights)
    result, kept = cast(graph, low)
    assert [item.node for item in kept] == ["NonMaxSuppression_2"]
    assert low in kept[0].reason
    assert "NonMaxSuppression" in kept[0].reason
    assert types(result.path)["Relu_0"] != ir.DataType.FLOAT


@LOWS
def test_scales_of_a_resize_stay_float(low: Low, tmp_path: Path) -> None:
    text = """g (float[N, 2, 3, 3] x) => (float[N, 2, ?, ?] y) {
        r = Relu(x) y = Resize<mode = "linear">(r, , scales)
    }"""
    graph = optimized(tmp_path, text, {"scales": np.array([1, 1, 2, 2], np.float32)})
    result, kept = cast(graph, low)
    assert kept == ()
    model = onnx.load(result.path)
    (resize,) = (n for n in model.graph.node if n.op_type == "Resize")
    (scales,) = (t for t in model.graph.initializer if t.name == resize.input[2])
    assert scales.data_type == TensorProto.FLOAT


@LOWS
def test_branches_stay_in_fp32_and_get_fp32(low: Low, tmp_path: Path) -> None:
    text = """g (bool c, float[N, 4] x) => (float[N, 4] y) {
        r = Relu(x)
        z = If (c) <
            then_branch = g1 () => (float[N, 4] t) { t = Mul(r, k) },
            else_branch = g2 () => (float[N, 4] e) { e = Neg(r) }
        >
        y = Relu(z)
    }"""
    graph = optimized(tmp_path, text, {"k": np.full(1, 3, "f4")})
    results = [cast(graph, low, emulated=True)[0]]
    if low == "fp16":
        results.append(cast(graph, low)[0])
    for result in results:
        for condition in (0, 1):
            feeds = {"c": np.array(condition, np.bool_), "x": models.normal(3, 4)}
            expected, got = (
                models.run(graph.path, feeds)["y"],
                models.run(result.path, feeds)["y"],
            )
            np.testing.assert_allclose(got, expected, rtol=1e-2)


def test_kept_nodes_are_not_converted(tmp_path: Path) -> None:
    graph = networks.network(tmp_path)
    plan = Casting(precision="fp16", amax={}, keep_float=frozenset({"Conv_0", "Gemm_17"}))
    result, kept = cast_graph(graph, plan, tmp_path / "fp16.onnx")
    found = types(result.path)
    assert {item.node for item in kept} == plan.keep_float & set(found)
    assert found["Conv_0"] == ir.DataType.FLOAT
