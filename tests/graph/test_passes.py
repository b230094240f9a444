"""Rewrites: outputs stay, each pass says what it changed, and nothing is changed twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tests.graph import models
from trtbuild.errors import BuildError
from trtbuild.graph.model import load_model, read_graph
from trtbuild.graph.optimize import optimize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.graph.models import Array


def norm(channels: int, prefix: str = "", seed: int = 5) -> dict[str, Array]:
    """Return scale, shift, mean and variance of a batch normalization."""
    return {
        f"{prefix}s": 1 + models.normal(channels, seed=seed) / 4,
        f"{prefix}t": models.normal(channels, seed=seed + 1),
        f"{prefix}m": models.normal(channels, seed=seed + 2),
        f"{prefix}v": 0.5 + np.abs(models.normal(channels, seed=seed + 3)),
    }


W = models.normal(4, 3, 3, 3)
B = models.normal(4, seed=1)
X = "(float[N, 3, 8, 8] x) => (float[N, 4, ?, ?] y)"
X4 = "(float[N, 4, 8, 8] x) => (float[N, 4, ?, ?] y)"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, what optimizing it must leave, and the pass that must speak of it."""

    text: str
    weights: Mapping[str, Array]
    left: list[str]
    said: str
    shape: tuple[int, ...] = (2, 3, 8, 8)
    feeds: Mapping[str, Array] = field(default_factory=dict)


CASES = {
    "conv-norm": Case(
        text=f"g {X} {{ c = Conv(x, w) y = BatchNormalization(c, s, t, m, v) }}",
        weights={"w": W, **norm(4)},
        left=["Conv"],
        said="1 batch normalizations folded",
    ),
    "conv-with-bias-norm-relu": Case(
        text=f"""g {X} {{
            c = Conv(x, w, b) n = BatchNormalization<epsilon = 0.1>(c, s, t, m, v)
            y = Relu(n)
        }}""",
        weights={"w": W, "b": B, **norm(4)},
        left=["Conv", "Relu"],
        said="1 batch normalizations folded",
    ),
    "two-norms-in-a-row": Case(
        text=f"""g {X} {{
            c = Conv(x, w) n = BatchNormalization(c, s, t, m, v)
            y = BatchNormalization(n, as, at, am, av)
        }}""",
        weights={"w": W, **norm(4), **norm(4, "a", 20)},
        left=["Conv"],
        said="2 batch normalizations folded",
    ),
    "grouped-conv-norm": Case(
        text=f"""g {X4} {{
            c = Conv<group = 2>(x, w) y = BatchNormalization(c, s, t, m, v)
        }}""",
        weights={"w": models.normal(4, 2, 3, 3), **norm(4)},
        left=["Conv"],
        said="1 batch normalizations folded",
        shape=(2, 4, 8, 8),
    ),
    "transposed-conv-norm": Case(
        text=f"""g {X} {{
            c = ConvTranspose<strides = [2, 2]>(x, w, b)
            y = BatchNormalization(c, s, t, m, v)
        }}""",
        weights={"w": models.normal(3, 4, 3, 3), "b": B, **norm(4)},
        left=["ConvTranspose"],
        said="1 batch normalizations folded",
    ),
    "grouped-transposed-conv-norm-stays": Case(
        text=f"""g {X4} {{
            c = ConvTranspose<group = 2>(x, w) y = BatchNormalization(c, s, t, m, v)
        }}""",
        weights={"w": models.normal(4, 2, 3, 3), **norm(4)},
        left=["ConvTranspose", "BatchNormalization"],
        said="",
        shape=(2, 4, 8, 8),
    ),
    "gemm-norm": Case(
        text="""g (float[N, 3] x) => (float[N, 4] y) {
            c = Gemm<transB = 1>(x, w, b) y = BatchNormalization(c, s, t, m, v)
        }""",
        weights={"w": models.normal(4, 3), "b": B, **norm(4)},
        left=["Gemm"],
        said="1 batch normalizations folded",
        shape=(2, 3),
    ),
    "gemm-of-a-plain-weight-norm": Case(
        text="""g (float[N, 3] x) => (float[N, 4] y) {
            c = Gemm(x, w, b) y = BatchNormalization(c, s, t, m, v)
        }""",
        weights={"w": models.normal(3, 4), "b": models.normal(1, 4), **norm(4)},
        left=["Gemm"],
        said="1 batch normalizations folded",
        shape=(2, 3),
    ),
    "scaled-gemm-norm-stays": Case(
        text="""g (float[N, 3] x) => (float[N, 4] y) {
            c = Gemm<alpha = 0.5>(x, w, b) y = BatchNormalization(c, s, t, m, v)
        }""",
        weights={"w": models.normal(3, 4), "b": B, **norm(4)},
        left=["Gemm", "BatchNormalization"],
        said="",
        shape=(2, 3),
    ),
    "bias-then-norm": Case(
        text=f"""g {X} {{
            c = Conv(x, w) d = Add(c, k) y = BatchNormalization(d, s, t, m, v)
        }}""",
        weights={"w": W, "k": models.normal(4, 1, 1), **norm(4)},
        left=["Conv"],
        said="1 batch normalizations folded",
    ),
    "addition-scale-addition": Case(
        text=f"g {X} {{ c = Conv(x, w, b) d = Add(k, c) e = Mul(d, f) y = Add(e, h) }}",
        weights={
            "w": W,
            "b": B,
            "k": models.normal(1, 4, 1, 1),
            "f": models.normal(4, 1, 1, seed=2),
            "h": np.array([0.5], np.float32),
        },
        left=["Conv"],
        said="1 multiplications folded into weights; 1 additions folded into a bias",
    ),
    "addition-along-the-width-stays": Case(
        text=f"g {X} {{ c = Conv(x, w) y = Add(c, k) }}",
        weights={"w": models.normal(4, 3, 5, 5), "k": models.normal(4)},
        left=["Conv", "Add"],
        said="",
    ),
    "sum-of-two": Case(
        text=f"g {X} {{ a = Conv(x, w) b = Relu(a) y = Sum(a, b) }}",
        weights={"w": W},
        left=["Conv", "Relu", "Add"],
        said="1 sums of two written as Add",
    ),
    "sum-of-three-stays": Case(
        text=f"g {X} {{ a = Conv(x, w) b = Relu(a) y = Sum(a, b, b) }}",
        weights={"w": W},
        left=["Conv", "Relu", "Sum"],
        said="",
    ),
    "identities": Case(
        text=f"""g {X} {{
            i = Identity(x) a = Conv(i, w) j = Identity(a) d = Dropout(j)
            k = Cast<to = 1>(d) r = Relu(k) y = Identity(r)
        }}""",
        weights={"w": W},
        left=["Conv", "Relu"],
        said="5 identities removed",
    ),
    "dropout-that-is-told-not-to-train": Case(
        text=f"g {X} {{ a = Conv(x, w) d = Dropout(a, ratio, mode) y = Relu(d) }}",
        weights={"w": W, "ratio": np.array(0.5, np.float32), "mode": np.array(0, np.bool_)},
        left=["Conv", "Relu"],
        said="1 identities removed",
    ),
    "constants": Case(
        text=f"""g {X} {{
            two = Constant<value = float[1] {{2.0}}>() three = Add(two, two)
            s = Shape(w) f = Gather(s, zero) g = Cast<to = 1>(f) h = Mul(g, three)
            c = Conv(x, w) d = Relu(c) y = Mul(d, h)
        }}""",
        weights={"w": W, "zero": np.array(0, np.int64)},
        left=["Conv", "Relu", "Mul"],
        said="6 constant nodes folded",
    ),
    "dead-code": Case(
        text=f"g {X} {{ y = Conv(x, w) u = Relu(y) z = Mul(u, w2) }}",
        weights={"w": W, "w2": np.array([2.0], np.float32)},
        left=["Conv"],
        said="2 ",
    ),
}


def optimized(case: Case, folder: Path) -> tuple[Path, Path, str]:
    source = models.write(folder / "source.onnx", case.text, case.weights)
    _, changes = optimize(source, folder / "optimized.onnx")
    said = "; ".join(line for change in changes for line in change.changes)
    return source.path, folder / "optimized.onnx", said


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_rewrite_keeps_every_output_and_says_what_it_did(case: Case, tmp_path: Path) -> None:
    source, result, said = optimized(case, tmp_path)
    assert models.operators(result) == case.left
    assert case.said in said
    assert bool(said) == bool(case.said)
    feeds = {"x": models.normal(*case.shape, seed=9)}
    expected, got = models.run(source, feeds), models.run(result, feeds)
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_an_optimized_graph_is_left_as_it_is(case: Case, tmp_path: Path) -> None:
    _, result, _ = optimized(case, tmp_path)
    again, changes = optimize(read_graph(result), tmp_path / "again.onnx")
    assert changes == ()
    assert again.sha256 == read_graph(result).sha256


KEPT = {
    "the output of the convolution is an output too": (
        "g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] c, float[N, 4, 6, 6] y) "
        "{ c = Conv(x, w) y = BatchNormalization(c, s, t, m, v) }"
    ),
    "another node reads the output of the convolution": (
        f"g {X} {{ c = Conv(x, w) n = BatchNormalization(c, s, t, m, v) y = Add(n, c) }}"
    ),
}


@pytest.mark.parametrize("text", KEPT.values(), ids=list(KEPT))
def test_a_convolution_that_others_need_keeps_its_normalization(
    text: str, tmp_path: Path
) -> None:
    case = Case(text=text, weights={"w": W, **norm(4)}, left=[], said="")
    source, result, said = optimized(case, tmp_path)
    assert said == ""
    assert models.operators(result) == models.operators(source)


def test_a_weight_that_two_convolutions_share_is_folded_for_one_only(tmp_path: Path) -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {
        a = Conv(x, w) y = BatchNormalization(a, s, t, m, v) b = Conv(x, w) z = Relu(b)
    }"""
    case = Case(text=text, weights={"w": W, **norm(4)}, left=[], said="")
    source, result, _ = optimized(case, tmp_path)
    assert models.operators(result) == ["Conv", "Conv", "Relu"]
    feeds = {"x": models.normal(2, 3, 8, 8)}
    expected, got = models.run(source, feeds), models.run(result, feeds)
    np.testing.assert_allclose(got["y"], expected["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got["z"], expected["z"])


def test_outputs_that_are_one_tensor_under_two_names_both_stay(tmp_path: Path) -> None:
    text = """g (float[4] x) => (float[4] h, float[4] y, float[4] z, float[4] k) {
        h = Relu(x) y = Identity(h) z = Identity(x) k = Constant<value = float[4] {1,2,3,4}>()
    }"""
    case = Case(text=text, weights={}, left=[], said="")
    source, result, _ = optimized(case, tmp_path)
    x = np.array([-1, 2, -3, 4], np.float32)
    expected, got = models.run(source, {"x": x}), models.run(result, {"x": x})
    assert list(got) == ["h", "y", "z", "k"]
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_an_identity_that_makes_an_outer_value_a_branch_stays(tmp_path: Path) -> None:
    text = """g (bool c, float[4] x) => (float[4] y) {
        r = Relu(x)
        y = If (c) <
            then_branch = g1 () => (float[4] t) { t = Identity(r) },
            else_branch = g2 () => (float[4] e) { e = Neg(r) }
        >
    }"""
    case = Case(text=text, weights={}, left=[], said="")
    source, result, _ = optimized(case, tmp_path)
    for condition in (0, 1):
        feeds = {"c": np.array(condition, np.bool_), "x": np.array([-1, 2, -3, 4], np.float32)}
        np.testing.assert_array_equal(
            models.run(result, feeds)["y"], models.run(source, feeds)["y"]
        )


def test_a_dropout_that_trains_or_whose_mask_is_an_output_stays(tmp_path: Path) -> None:
    text = """g (float[4] x, bool train) => (float[4] y, bool[4] mask, float[4] z) {
        r = Relu(x) d, mask = Dropout(r) y = Neg(d) e = Dropout(r, ratio, train) z = Neg(e)
    }"""
    case = Case(text=text, weights={"ratio": np.array(0.5, np.float32)}, left=[], said="")
    source, result, _ = optimized(case, tmp_path)
    assert models.operators(result).count("Dropout") == 1
    feeds = {"x": models.normal(4), "train": np.array(0, np.bool_)}
    expected, got = models.run(source, feeds), models.run(result, feeds)
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_a_normalization_that_trains_stays(tmp_path: Path) -> None:
    text = f"""g {X} {{
        c = Conv(x, w) y, p, q = BatchNormalization<training_mode = 1>(c, s, t, m, v)
    }}"""
    case = Case(text=text, weights={"w": W, **norm(4)}, left=[], said="")
    _, result, _ = optimized(case, tmp_path)
    assert models.operators(result) == ["Conv", "BatchNormalization"]


def test_axes_without_a_name_get_one_each(tmp_path: Path) -> None:
    text = "g (float[?, 3] a, float[?, 3] b, float[N, 3] c) => (float[?, 3] y) "
    source = models.proto(text + "{ s = Add(a, b) y = Add(s, c) }", {})
    source.graph.input[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    onnx.save(source, tmp_path / "m.onnx")
    graph, changes = optimize(read_graph(tmp_path / "m.onnx"), tmp_path / "o.onnx")
    assert [spec.shape[0] for spec in graph.inputs] == ["a_axis0", "b_axis0", "N"]
    assert [change.changes for change in changes] == [("dynamic axes named: a_axis0, b_axis0",)]


@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_old_opsets_are_raised_whatever_lists_their_weights(
    ir_version: int, *, external: bool, tmp_path: Path
) -> None:
    """Version 3 wants weights among the inputs; there are files that do without."""
    text = f"""g {X} {{
        c = Conv(x, w) n = BatchNormalization(c, s, t, m, v) d, mask = Dropout(n)
        u = Upsample(d, scales) r = Relu(u) y = Sum(r, u)
    }}"""
    weights = {
        "w": models.normal(64, 3, 3, 3),
        **norm(64),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    model = models.proto(text, weights, opset=9, ir_version=ir_version)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    if ir_version == 8:
        for name in ("w", "s"):
            kind = helper.make_tensor_value_info(name, TensorProto.FLOAT, weights[name].shape)
            model.graph.input.append(kind)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=external, location="m.data")
    source = read_graph(tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    graph, changes = optimize(source, tmp_path / "out" / "m.onnx")
    assert changes[0].changes == ("opset 9 raised to 17",)
    assert [spec.name for spec in graph.inputs] == ["x"]
    assert models.operators(graph.path) == ["Conv", "Resize", "Relu", "Add"]
    x = models.normal(2, 3, 8, 8)
    model.ir_version = 8
    onnx.save(model, tmp_path / "free.onnx")
    expected = models.run(tmp_path / "free.onnx", {"x": x})["y"]
    np.testing.assert_allclose(
        models.run(graph.path, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5
    )


def test_functions_are_inlined_before_an_old_opset_is_raised(tmp_path: Path) -> None:
    model = models.proto(
        "g (float[4] x) => (float[4] y) { r = Relu(x) y = Neg(r) }", {}, opset=9
    )
    opsets = [helper.make_opsetid("", 9)]
    nodes = [helper.make_node("Sum", ["a", "a"], ["r"])]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["r"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Twice", ["r"], ["y"], domain="own"))
    onnx.save(model, tmp_path / "m.onnx")
    graph, _ = optimize(read_graph(tmp_path / "m.onnx"), tmp_path / "o.onnx")
    assert models.operators(graph.path) == ["Relu", "Add"]
    got = models.run(graph.path, {"x": np.array([1, -2, 3, 4], np.float32)})["y"]
    np.testing.assert_array_equal(got, np.array([2, 0, 6, 8], np.float32))


def test_an_opset_that_cannot_be_raised_is_refused_with_a_remedy(tmp_path: Path) -> None:
    text = "g (float[2, 3, 4, 4] x) => (float[?, ?, ?, ?] y) { y = Upsample(x, s) }"
    source = models.proto(text.replace("(x, s)", "(x)"), {}, opset=7)
    source.graph.node[0].attribute.append(
        helper.make_attribute("height_scale", 2.0)  # Upsample as it was before opset 7
    )
    onnx.save(source, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"opset 7 .* Export the model with opset 17"):
        optimize(read_graph(tmp_path / "m.onnx"), tmp_path / "o.onnx")


def test_every_tensor_of_an_optimized_graph_has_its_type_and_shape(tmp_path: Path) -> None:
    text = f"g {X} {{ c = Conv(x, w) r = Relu(c) u = Own(r) y = Relu(u) }}"
    _, result, _ = optimized(
        Case(text=text.replace("Own", "Neg"), weights={"w": W}, left=[], said=""), tmp_path
    )
    values = {v.name: v for node in load_model(result).graph for v in node.outputs}
    assert {v.dtype for v in values.values()} == {ir.DataType.FLOAT}
    assert [str(v.shape) for v in values.values()] == ["[N,4,6,6]"] * 4
