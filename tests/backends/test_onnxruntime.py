"""Engines of ONNX Runtime: what they compute, and what they say of themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from tests.backends import building, graphs
from trtbuild.backends import onnxruntime as backend
from trtbuild.backends.ort_session import cannot_run, open_graph, open_session
from trtbuild.engine import Target
from trtbuild.errors import BuildError, SourceError, TrustError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def test_an_engine_computes_what_its_graph_computes(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    out = tmp_path / "engine"
    record = building.build(graph, building.ORT, out)
    x = graphs.images(3)
    (expected,) = open_graph(graph.path, fused=True).run({"x": x}).values()
    session = open_session(out.read_bytes(), building.ORT)
    (got,) = session.run({"x": x}).values()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert session.inputs == record.inputs
    assert [spec.name for spec in session.outputs] == [spec.name for spec in graph.outputs]
    assert record.peak_rss_bytes > 1 << 20
    assert record.seconds > 0


def test_a_relu_before_fp8_is_computed(tmp_path: Path) -> None:
    """ONNX Runtime's optimizer takes it away, as if FP8 had no negative numbers."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 19]>
        relu (float[N] x) => (float[N] y) <float scale = {0.01}> {
            zero = Constant<value = float8e4m3fn {0}>()
            positive = Relu(x)
            codes = QuantizeLinear(positive, scale, zero)
            y = DequantizeLinear(codes, scale, zero)
        }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.array([-3.0, -0.5, 0.5, 3.0], np.float32)
    (y,) = open_graph(tmp_path / "m.onnx", fused=False).run({"x": x}).values()
    np.testing.assert_allclose(y, np.maximum(x, 0), rtol=1 / 16)


def test_a_quantized_network_runs_in_int8_and_says_which_nodes(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", backend.SCHEME)
    record = building.build(graph, building.ORT, tmp_path / "engine")
    compute = [layer for layer in record.layers.layers if layer.compute]
    assert [(layer.kind, layer.nodes[0]) for layer in compute] == [
        ("QLinearConv", "stem"),
        ("QLinearConv", "inner"),
        ("QLinearConv", "head"),
    ]
    assert record.layers.precision_achieved == {"int8": 3}


def test_a_float_network_is_fused_and_says_so(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    record = building.build(graph, building.ORT, tmp_path / "engine")
    covered = [layer.nodes for layer in record.layers.layers if layer.compute]
    assert covered == [("stem", "stem_relu"), ("inner", "add", "add_relu"), ("head",)]
    assert record.layers.precision_achieved == {"fp32": 3}


def test_a_batch_norm_that_is_rewritten_as_a_convolution_is_no_compute_layer(
    tmp_path: Path,
) -> None:
    draw = graphs.Drawing()
    numbers = np.linspace(0.5, 1.5, graphs.CHANNELS, dtype=np.float32)
    inputs = [draw.constant(name, numbers) for name in ("scale", "shift", "mean", "variance")]
    tensor = draw.conv("x", "first")
    tensor = draw.node("Relu", [tensor], "relu")
    tensor = draw.node("BatchNormalization", [tensor, *inputs], "norm")
    tensor = draw.conv(tensor, "second")
    graph = draw.save(tmp_path / "m.onnx", tensor, graphs.IMAGE)
    layers = building.build(graph, building.ORT, tmp_path / "engine").layers
    compute = [layer.nodes[0] for layer in layers.layers if layer.compute]
    assert compute == ["first", "second"]


def test_a_session_that_is_not_fused_computes_quantization_as_written(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", backend.SCHEME)
    x = graphs.images(1)
    (got,) = open_graph(graph.path, fused=False).run({"x": x}).values()
    (expected,) = ReferenceEvaluator(str(graph.path)).run(None, {"x": x})
    # Sums in another order may round to the next step of the grid, rarely.
    assert np.mean(np.abs(got - expected) > graphs.SCALE / 2) < 0.01


def test_integer_kernels_run_only_in_a_fused_session(tmp_path: Path) -> None:
    draw = graphs.Drawing(backend.SCHEME)
    inputs = [draw.activation("x"), draw.weight("w", (8, 64)), draw.bias("b", 8)]
    graph = draw.save(tmp_path / "m.onnx", draw.node("Gemm", inputs, "g", transB=1), ("n", 64))
    x = {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)}
    (written,) = open_graph(graph.path, fused=False).run(x).values()
    (fused,) = open_graph(graph.path, fused=True).run(x).values()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(written, plain.run(None, x)[0])
    # Sums of integers are exact, sums of floats are not: the last bits tell them apart.
    assert not np.array_equal(fused, written)
    np.testing.assert_allclose(fused, written, rtol=1e-4, atol=1e-4)


def test_one_session_serves_many_threads(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    session = open_graph(graph.path, fused=True)
    batches = [graphs.images(1) * factor for factor in range(8)]
    alone = [session.run({"x": batch}) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: session.run({"x": batch}), batches * 4))
    for index, outputs in enumerate(together):
        for name, array in outputs.items():
            np.testing.assert_array_equal(array, alone[index % 8][name])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, ["missing ['x']"]),
        ({"y": graphs.images(1)}, ["missing ['x']", "unknown ['y']"]),
        ({"x": graphs.images(1).astype(np.float64)}, ["'x'", "float32", "float64"]),
        ({"x": graphs.images(1)[0]}, ["'x'", "4 axes", "[16, 16, 16]"]),
        ({"x": graphs.images(1)[:, :3]}, ["'x'", "axis 1", "16"]),
    ],
)
def test_wrong_inputs_are_named(
    tmp_path: Path, inputs: dict[str, graphs.Array], words: list[str]
) -> None:
    session = open_graph(graphs.residual(tmp_path / "m.onnx", None).path, fused=True)
    with pytest.raises(UsageError) as caught:
        session.run(inputs)
    assert all(word in str(caught.value) for word in words)


def test_a_list_is_no_input(tmp_path: Path) -> None:
    session = open_graph(graphs.residual(tmp_path / "m.onnx", None).path, fused=True)
    with pytest.raises(UsageError, match="expected a NumPy array, got list"):
        session.run({"x": graphs.images(1).tolist()})


def test_an_engine_of_another_processor_is_refused(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    other = Target(backend="onnxruntime", arch="x86_64-other", os=building.ORT.os)
    assert "x86_64-other" in cannot_run(other)
    assert cannot_run(building.ORT) == ""
    with pytest.raises(TrustError, match="x86_64-other"):
        open_session(b"", other)
    with pytest.raises(BuildError, match="x86_64-other"):
        building.build(graph, other, tmp_path / "engine")


def test_bytes_that_are_no_engine_are_refused() -> None:
    with pytest.raises(TrustError, match="build it again"):
        open_session(b"not an engine", building.ORT)


def test_a_graph_that_does_not_run_names_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_graph(tmp_path / "none.onnx", fused=True)
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    with pytest.raises(BuildError, match="cannot run the graph"):
        open_graph(text, fused=True)


def test_targets_are_this_processor_or_explain_themselves() -> None:
    (here,) = backend.targets(())
    assert here.target == building.ORT
    assert here.cannot_build == ""
    assert here.cannot_run == ""
    (other,) = backend.targets(("aarch64-dotprod",))
    assert "on such a machine" in other.cannot_build


def test_a_setting_is_our_own_mistake(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    with pytest.raises(ValueError, match="optimization_level"):
        backend.build(
            building.request(graph, building.ORT, tmp_path / "e", optimization_level=3)
        )


def test_an_engine_that_would_not_fit_into_a_file_is_refused(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    out = draw.node("Add", ["x", draw.constant("big", np.ones((2, 8), np.float32))], "add")
    graph = draw.save(tmp_path / "m.onnx", out, ("batch", 8))
    graphs.move_outside(graph.path, {"big": ("big.bin", 1 << 31)})
    with (tmp_path / "big.bin").open("wb") as sparse:
        sparse.truncate(1 << 31)
    with pytest.raises(BuildError, match="2 GiB"):
        building.build(graph, building.ORT, tmp_path / "engine")
