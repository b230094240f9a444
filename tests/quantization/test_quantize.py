"""Q/DQ graphs of both schemes: valid, accurate, fused, and only where they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.backends import building
from tests.graph import light, models
from tests.quantization import networks
from trtbuild.backends import onnxruntime, tensorrt_rtx
from trtbuild.backends.ort_session import open_graph
from trtbuild.errors import BuildError
from trtbuild.graph.optimize import optimize
from trtbuild.quantization.quantize import placement_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.graph.models import Array
    from trtbuild.backends.scheme import Scheme
    from trtbuild.graph import Graph

SCHEMES = pytest.mark.parametrize(
    "scheme", [onnxruntime.SCHEME, tensorrt_rtx.SCHEME], ids=["ort", "rtx"]
)


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return networks.network(tmp_path)


def constants(path: Path) -> dict[str, Array]:
    model = onnx.load(path)
    return {t.name: np.asarray(numpy_helper.to_array(t)) for t in model.graph.initializer}


def nodes(path: Path, operator: str) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path).graph.node if n.op_type == operator]


@SCHEMES
def test_a_quantized_network_has_the_interface_and_nearly_the_values_of_its_original(
    scheme: Scheme, graph: Graph
) -> None:
    result = networks.quantized(graph, scheme, networks.images(32))
    assert result.inputs == graph.inputs
    assert [(s.name, s.dtype) for s in result.outputs] == [
        (s.name, s.dtype) for s in graph.outputs
    ]
    feeds = {"x": networks.images(16, seed=1)}
    expected = models.run(graph.path, feeds)
    sessions = {fused: open_graph(result.path, fused=fused) for fused in (False, True)}
    for fused, session in sessions.items():
        got = session.run(feeds)
        for name, array in expected.items():
            assert models.sqnr_db(array, got[name]) > 20, (fused, name)


@pytest.mark.parametrize(
    "scheme",
    [onnxruntime.SCHEME, *tensorrt_rtx.SCHEMES.values()],
    ids=["ort", "rtx-int8", "rtx-fp8"],
)
def test_the_graph_computes_what_its_nodes_say(scheme: Scheme, graph: Graph) -> None:
    """The twin: no Q/DQ fusion, so node by node and optimized agree."""
    result = networks.quantized(graph, scheme, networks.images(32))
    feeds = {"x": networks.images(4, seed=1)}
    expected = models.run(result.path, feeds)
    got = open_graph(result.path, fused=False).run(feeds)
    for name, array in expected.items():
        assert models.sqnr_db(array, got[name]) > 40


def test_onnx_runtime_fuses_every_compute_node(graph: Graph, tmp_path: Path) -> None:
    result = networks.quantized(graph, onnxruntime.SCHEME, networks.images(32))
    record = building.build(result, building.ORT, tmp_path / "engine")
    kinds = [layer.kind for layer in record.layers.layers]
    assert kinds.count("QLinearConv") == 5
    assert kinds.count("QLinearConcat") == 1
    assert kinds.count("QLinearAdd") == 1
    assert record.layers.precision_achieved == {"fp32": 1, "int8": 7}
    assert not {"Relu", "Clip"} & set(kinds)


STEM = "g (float[N, {inputs}, 8, 8] x) => (float[N, {outputs}, 8, 8] y) {{ {body} }}"
PADDED = "Conv<pads = [1, 1, 1, 1]>"


@pytest.mark.parametrize(
    ("inputs", "outputs", "body", "kept"),
    [
        (3, 8, f"y = {PADDED}(x, w)", {"Conv_0"}),
        (3, 8, f"c = {PADDED}(x, w) y = {PADDED}(c, v)", {"Conv_0"}),
        (1, 4, f"c = {PADDED}(x, w) y = {PADDED}(c, v)", {"Conv_0", "Conv_1"}),
        (3, 10, f"y = {PADDED}(x, w)", set()),
        (8, 8, f"y = {PADDED}(x, w)", set()),
        (8, 4, f"c = {PADDED}(x, w) r = Sigmoid(c) y = {PADDED}(r, v)", set()),
    ],
    ids=["few channels", "then more", "twice", "wide output", "many channels", "behind 8 bits"],
)
def test_the_first_convolutions_stay_in_float_where_gathering_costs_more_than_products(
    inputs: int, outputs: int, body: str, kept: set[str], tmp_path: Path
) -> None:
    text = STEM.format(inputs=inputs, outputs=outputs, body=body)
    parts = {
        "w": models.normal(outputs, inputs, 3, 3),
        "v": models.normal(outputs, outputs, 3, 3, seed=1),
    }
    used = {name: array for name, array in parts.items() if f", {name})" in body}
    graph = models.write(tmp_path / "m.onnx", text, used)
    optimized, _ = optimize(graph, tmp_path / "o.onnx")
    convolutions = {n.name for n in nodes(optimized.path, "Conv")}
    placed = placement_of(optimized, onnxruntime.SCHEME, ()).nodes
    assert convolutions - set(placed) == kept
    symmetric = placement_of(optimized, tensorrt_rtx.SCHEME, ()).nodes
    assert convolutions <= set(symmetric)


def test_a_last_sum_of_8_bit_values_is_taken_in_8_bits(tmp_path: Path) -> None:
    """And a sum of other values is not: it would only lose accuracy."""
    text = """g (float[N, 16, 4, 4] x) => (float[N, 16, 4, 4] y, float[N, 16, 4, 4] z) {
        a = Conv(x, w) b = Conv(a, v) s = Add(a, b) r = Relu(s) y = Softplus(r)
        f = Add(x, a) z = Softplus(f)
    }"""
    weights = {"w": models.normal(16, 16, 1, 1), "v": models.normal(16, 16, 1, 1, seed=1)}
    graph, _ = optimize(models.write(tmp_path / "m.onnx", text, weights), tmp_path / "o.onnx")
    result = networks.quantized(graph, onnxruntime.SCHEME, models.normal(4, 16, 4, 4, seed=2))
    record = building.build(result, building.ORT, tmp_path / "engine")
    kinds = [layer.kind for layer in record.layers.layers]
    assert (kinds.count("QLinearAdd"), kinds.count("Add"), kinds.count("Relu")) == (1, 1, 0)


@pytest.mark.rtx
def test_tensorrt_rtx_computes_every_compute_node_in_int8(graph: Graph, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = networks.quantized(graph, tensorrt_rtx.SCHEME, networks.images(32))
    record = building.build(result, building.rtx("sm_89"), tmp_path / "engine")
    assert set(record.layers.precision_achieved) == {"int8"}
    covered = {node for layer in record.layers.layers if layer.compute for node in layer.nodes}
    compute = {n.name for op in ("Conv", "Gemm") for n in nodes(result.path, op)}
    assert compute <= covered


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_light_models_are_quantized_in_every_compute_node(name: str, tmp_path: Path) -> None:
    graph, _ = optimize(light.write(name, tmp_path / "light.onnx"), tmp_path / "o.onnx")
    compute = [op for op in models.operators(graph.path) if op in ("Conv", "Gemm")]
    images = models.normal(2, 3, 224, 224)
    feeds = {graph.inputs[0].name: images[:1]}
    expected = models.run(tmp_path / "light.onnx", feeds)
    got = models.run(graph.path, feeds)
    for output, array in expected.items():
        np.testing.assert_allclose(got[output], array, rtol=1e-3, atol=1e-3 * np.ptp(array))
    for scheme in (onnxruntime.SCHEME, tensorrt_rtx.SCHEME):
        placement = placement_of(graph, scheme, ())
        result = networks.quantized(graph, scheme, images)
        assert len([n for n, weight in placement.nodes.items() if weight >= 0]) == len(compute)
        run = open_graph(result.path, fused=False).run(feeds)
        for output, array in expected.items():
            assert models.sqnr_db(array, run[output]) > 20


def test_the_scheme_of_tensorrt_is_symmetric_and_reads_only_what_computes(
    graph: Graph,
) -> None:
    result = networks.quantized(graph, tensorrt_rtx.SCHEME, networks.images(32))
    values = constants(result.path)
    zero_points = {n.input[2] for n in nodes(result.path, "QuantizeLinear")}
    assert {str(values[name].dtype) for name in zero_points} == {"int8"}
    assert not any(values[name].any() for name in zero_points)
    assert not [a for a in values.values() if a.dtype == np.int32]
    (softplus,) = nodes(result.path, "Softplus")
    assert softplus.input[0] == "dead_r"
    (pool,) = nodes(result.path, "MaxPool")
    assert pool.input[0] == "stem_r"


def test_values_that_only_move_keep_their_scale(graph: Graph) -> None:
    scheme = msgspec.structs.replace(onnxruntime.SCHEME, float_stem=0)
    result = networks.quantized(graph, scheme, networks.images(32))
    makers = {n.output[0]: n for n in onnx.load(result.path).graph.node}
    (pool,) = nodes(result.path, "MaxPool")
    before = makers[pool.input[0]]
    after = next(
        n for n in nodes(result.path, "QuantizeLinear") if n.input[0] == pool.output[0]
    )
    assert list(before.input[1:]) == list(after.input[1:])


@SCHEMES
def test_a_shared_weight_is_stored_once_per_scale(scheme: Scheme, graph: Graph) -> None:
    """A bias may need a scale of its own, in INT32 schemes; here it does not."""
    result = networks.quantized(graph, scheme, networks.images(32))
    stored = [a for n, a in constants(result.path).items() if a.shape == (8, 8, 3, 3)]
    assert [a.dtype for a in stored] == [np.int8]


def test_biases_fit_int32_even_where_all_weights_of_a_channel_are_zero(graph: Graph) -> None:
    result = networks.quantized(graph, onnxruntime.SCHEME, networks.images(32))
    values = constants(result.path)
    checked = 0
    for node in nodes(result.path, "DequantizeLinear"):
        codes = values.get(node.input[0])
        if codes is None or codes.dtype != np.int32:
            continue
        assert np.abs(codes.astype(np.int64)).max() < 2**31 - 1
        if "dead" in node.name or codes.size == 8:
            checked += 1
    assert checked
    biases = networks.weights()["dead_b"]
    name = next(n for n in values if n.endswith("bias_quantized") and _holds(values, n, biases))
    scale = values[name.replace("_quantized", "_scale")]
    np.testing.assert_allclose(values[name] * scale.astype(np.float64), biases, rtol=1e-3)


def _holds(values: dict[str, Array], name: str, biases: Array) -> bool:
    scale = values[name.replace("_quantized", "_scale")]
    return values[name].shape == biases.shape and np.allclose(
        values[name] * scale, biases, 0.01
    )


def test_nodes_that_a_pattern_names_stay_in_float(graph: Graph) -> None:
    everything = placement_of(graph, onnxruntime.SCHEME, ())
    gemms = [n for n in everything.nodes if n.startswith("Gemm")]
    kept = placement_of(graph, onnxruntime.SCHEME, ("Gemm_*", "Clip_4"))
    assert len(gemms) == 2
    assert set(everything.nodes) - set(kept.nodes) >= set(gemms)
    assert "Clip_4" in everything.absorbed
    assert "Clip_4" not in kept.absorbed
    result = networks.quantized(
        graph, onnxruntime.SCHEME, networks.images(32), ("Gemm_*", "Clip_4")
    )
    assert {n.input[1] for n in nodes(result.path, "Gemm")} == {"head_w"}
    feeds = {"x": networks.images(4, seed=1)}
    expected, got = models.run(graph.path, feeds), models.run(result.path, feeds)
    assert models.sqnr_db(expected["y"], got["y"]) > 20


PRODUCTS = {
    "weight on the left": (
        "g (float[N, 16, 6] x) => (float[N, 4, 6] y) { y = MatMul(w, x) }",
        (4, 16),
    ),
    "weight of three axes": (
        "g (float[N, 5, 16] x) => (float[N, 5, 4] y) { y = MatMul(x, w) }",
        (1, 16, 4),
    ),
    "batch of matrices": (
        "g (float[N, 5, 16] x) => (float[N, 5, 4] y) { m = MatMul(x, w) y = Add(m, b) }",
        (16, 4),
    ),
    "vector": ("g (float[N, 16] x) => (float[N] y) { y = MatMul(x, w) }", (16,)),
    "Gemm, plain weight": (
        "g (float[N, 16] x) => (float[N, 4] y) { y = Gemm(x, w, b) }",
        (16, 4),
    ),
    "Gemm, transposed weight, factors": (
        """g (float[N, 16] x) => (float[N, 4] y) {
            y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)
        }""",
        (4, 16),
    ),
    "transposed convolution": (
        """g (float[N, 16, 3, 3] x) => (float[N, 4, ?, ?] y) {
            r = Relu(x) y = ConvTranspose(r, w, b)
        }""",
        (16, 4, 3, 3),
    ),
    "nearest resize between convolutions": (
        """g (float[N, 16, 3, 3] x) => (float[N, 16, ?, ?] y) {
            c = Conv(x, w) r = Resize(c, , s) y = Conv(r, w)
        }""",
        (16, 16, 1, 1),
    ),
}


@SCHEMES
@pytest.mark.parametrize(("text", "shape"), PRODUCTS.values(), ids=list(PRODUCTS))
def test_every_kind_of_product_stays_close(
    text: str, shape: tuple[int, ...], scheme: Scheme, tmp_path: Path
) -> None:
    parts = {
        "w": models.normal(*shape, seed=1),
        "b": models.normal(4, seed=2),
        "s": np.array([1, 1, 2, 2], np.float32),
    }
    used = {
        name: array
        for name, array in parts.items()
        if f" {name})" in text or f"{name}," in text
    }
    source = models.write(tmp_path / "s.onnx", text, used)
    graph, _ = optimize(source, tmp_path / "o.onnx")
    x = models.normal(8, *(int(n) for n in source.inputs[0].shape[1:]), seed=3)
    placement = placement_of(graph, scheme, ())
    result = networks.quantized(graph, scheme, x)
    expected = models.run(graph.path, {"x": x})["y"]
    for fused in (False, True):
        got = open_graph(result.path, fused=fused).run({"x": x})["y"]
        assert models.sqnr_db(expected, got) > 30
    assert bool(placement.nodes) == ("Transpose" not in text)


def test_codes_around_zero_do_not_stand_for_a_relu(graph: Graph) -> None:
    """They keep negative values: the Relu must stay where a scheme is symmetric."""
    scheme = msgspec.structs.replace(tensorrt_rtx.SCHEME, requantize_outputs=("Conv",))
    result = networks.quantized(graph, scheme, networks.images(32))
    assert "Relu" in models.operators(result.path)
    feeds = {"x": networks.images(4, seed=1)}
    expected, got = models.run(graph.path, feeds), models.run(result.path, feeds)
    assert models.sqnr_db(expected["y"], got["y"]) > 20
    assert got["middle"].min() == 0


@SCHEMES
def test_a_constant_of_the_model_is_never_taken_for_a_scale(
    scheme: Scheme, tmp_path: Path
) -> None:
    """Exporters call tensors ``conv1`` and their factors ``conv1_scale``."""
    text = """g (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y) {
        c = Conv(x, w) s = Softplus(c) m = Mul(s, x_scale) y = Conv(m, m_scale)
    }"""
    weights = {
        "w": models.normal(4, 3, 1, 1),
        "x_scale": np.array([100.0], np.float32),
        "m_scale": models.normal(4, 4, 1, 1, seed=1),
    }
    graph, _ = optimize(models.write(tmp_path / "s.onnx", text, weights), tmp_path / "o.onnx")
    x = models.normal(8, 3, 4, 4)
    result = networks.quantized(graph, scheme, x)
    expected, got = (
        models.run(graph.path, {"x": x})["y"],
        models.run(result.path, {"x": x})["y"],
    )
    assert models.sqnr_db(expected, got) > 30


@SCHEMES
def test_a_model_that_is_quantized_already_is_refused(scheme: Scheme, graph: Graph) -> None:
    result = networks.quantized(graph, scheme, networks.images(32))
    with pytest.raises(BuildError, match=r"DequantizeLinear.* quantized already"):
        placement_of(result, scheme, ())


@SCHEMES
def test_without_constant_weights_nothing_is_placed(scheme: Scheme, tmp_path: Path) -> None:
    text = "g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { y = MatMul(x, w) }"
    graph = models.write(tmp_path / "m.onnx", text, {})
    placement = placement_of(graph, scheme, ())
    assert placement.nodes == {}
    assert placement.observed == ()
