"""Engines of TensorRT-RTX, built without a GPU: their layers, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import pytest

from tests.backends import building, graphs
from trtbuild.backends import onnxruntime, tensorrt_rtx, trt_session
from trtbuild.backends.isolation import build_isolated
from trtbuild.backends.trt_plan import problem
from trtbuild.engine import ShapeRange
from trtbuild.errors import BuildError, MissingBackendError
from trtbuild.graph.model import read_graph
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.rtx

LIMITS = Limits(build_seconds=120)
ADA = building.rtx("sm_89")


@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_120"])
def test_a_quantized_network_runs_in_int8_and_says_which_nodes(
    arch: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", tensorrt_rtx.SCHEME)
    target = building.rtx(arch)
    tensorrt_rtx.preflight(graph, target, "int8")
    out = tmp_path / "engine"
    record = building.build(graph, target, out)
    compute = [layer for layer in record.layers.layers if layer.compute]
    assert [(layer.kind, layer.nodes[0]) for layer in compute] == [
        ("correlation", "stem"),
        ("correlation", "inner"),
        ("correlation", "head"),
    ]
    assert record.layers.precision_achieved == {"int8": 3}
    covered = {node for layer in record.layers.layers for node in layer.nodes}
    assert {"stem_relu", "add", "add_relu"} <= covered
    assert record.inputs == graph.inputs
    assert problem(out.read_bytes(), target) == ""


def test_turing_loses_int8_convolutions_and_preflight_says_so(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", tensorrt_rtx.SCHEME)
    turing = building.rtx("sm_75")
    record = building.build(graph, turing, tmp_path / "engine")
    assert record.layers.precision_achieved == {"fp32": 3}
    with pytest.raises(BuildError, match=r"'stem'.*sm_75 computes it in float"):
        tensorrt_rtx.preflight(graph, turing, "int8")


def test_a_float_network_is_fused_and_says_so(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    record = building.build(graph, ADA, tmp_path / "engine")
    covered = [set(layer.nodes) for layer in record.layers.layers if layer.compute]
    assert covered == [{"stem", "stem_relu"}, {"inner", "add", "add_relu"}, {"head"}]
    assert record.layers.precision_achieved == {"fp32": 3}


def test_layers_of_several_profiles_are_counted_once(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    wish = building.request(graph, ADA, tmp_path / "engine")
    twice = msgspec.structs.replace(wish, profiles=wish.profiles * 2)
    assert build_isolated(twice, LIMITS).layers.precision_achieved == {"fp32": 3}


@pytest.mark.parametrize("profiles", [1, 2])
def test_layers_of_a_gru_of_any_length_are_all_counted(profiles: int, tmp_path: Path) -> None:
    graph = graphs.tagger(tmp_path / "m.onnx")
    wish = building.request(graph, ADA, tmp_path / "engine")
    wish = msgspec.structs.replace(wish, profiles=wish.profiles * profiles)
    layers = build_isolated(wish, LIMITS).layers
    products = [layer for layer in layers.layers if layer.compute]
    assert layers.precision_achieved == {"fp32": 5}
    assert {node for layer in products for node in layer.nodes} == {"stem", "head"}
    assert sum("Loop" in layer.name or "_Fc" in layer.name for layer in products) == 3


def test_node_names_that_would_break_the_log_survive(tmp_path: Path) -> None:
    names = ["a\nName: b", "c, LayerType: gemm, Inputs: []", "d\x1fe", "same", "same", ""]
    graph = graphs.chain(tmp_path / "m.onnx", names)
    record = building.build(graph, ADA, tmp_path / "engine")
    covered = [name for layer in record.layers.layers for name in layer.nodes]
    assert set(covered) == {*names[:5], "node_of_relu_5_out"}
    assert record.layers.precision_achieved == {"fp32": 3}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimization_level": 99}, "did not take optimization_level = 99, it has 5"),
        ({"optimization_level": -1}, "did not take optimization_level = -1"),
        ({"workspace_mib": -5}, "refuses workspace_mib"),
        ({"workspace_mib": 0}, "raise the build option workspace_mib"),
    ],
)
def test_a_setting_that_takes_no_effect_is_an_error(
    settings: dict[str, int], words: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    wish = building.request(graph, ADA, tmp_path / "engine", **settings)
    with pytest.raises(BuildError) as caught:
        build_isolated(wish, LIMITS)
    assert words in str(caught.value)
    assert not wish.out.exists()


def test_an_unknown_setting_is_our_own_mistake(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    with pytest.raises(ValueError, match="precision"):
        tensorrt_rtx.build(building.request(graph, ADA, tmp_path / "e", precision="int8"))


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ((), "input 'x' has dynamic axes"),
        ((("y", (1, 16, 16, 16)),), "names input 'y'"),
        ((("x", (1, 16, 16)),), "has 4 axes"),
        ((("x", (1, 3, 16, 16)),), "axis 1 of input 'x' is always 16"),
    ],
)
def test_a_profile_that_does_not_fit_is_explained(
    ranges: tuple[tuple[str, tuple[int, ...]], ...], words: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    wish = building.request(graph, ADA, tmp_path / "engine")
    profile = tuple(ShapeRange(input=n, min=s, opt=s, max=s) for n, s in ranges)
    with pytest.raises(BuildError) as caught:
        build_isolated(msgspec.structs.replace(wish, profiles=(profile,)), LIMITS)
    assert words in str(caught.value)


def test_an_operator_that_is_not_known_gets_a_remedy_that_exists_here(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    scaled = draw.node("DeformAttention", ["x"], "odd")
    draw.nodes[-1].domain = "com.example"
    path = tmp_path / "m.onnx"
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 4])
        for name in ("x", scaled)
    )
    made = onnx.helper.make_model(
        onnx.helper.make_graph(draw.nodes, "graph", [x], [y]),
        opset_imports=[
            onnx.helper.make_opsetid(d, v) for d, v in (("", 21), ("com.example", 1))
        ],
        ir_version=10,
    )
    onnx.save(made, path)
    with pytest.raises(BuildError) as caught:
        building.build(read_graph(path), ADA, tmp_path / "engine")
    assert "DeformAttention" in str(caught.value)
    assert "plug-ins are for --backend tensorrt alone" in str(caught.value)
    assert "--plugin" not in str(caught.value)


def test_uint8_is_refused_before_and_by_the_build(tmp_path: Path) -> None:
    draw = graphs.Drawing(
        msgspec.structs.replace(onnxruntime.SCHEME, requantize_outputs=(), bias="float")
    )
    relu = draw.node("Relu", ["x"], "relu")
    graph = draw.save(tmp_path / "m.onnx", draw.conv(draw.activation(relu), "c"), graphs.IMAGE)
    with pytest.raises(BuildError, match=r"'q_relu_out'.*uint8 zero point"):
        tensorrt_rtx.preflight(graph, ADA, "int8")
    with pytest.raises(BuildError, match="reads uint8 as int8"):
        building.build(graph, ADA, tmp_path / "engine")


def test_int32_biases_are_refused_before_and_by_the_build(tmp_path: Path) -> None:
    scheme = msgspec.structs.replace(tensorrt_rtx.SCHEME, bias="int32")
    graph = graphs.residual(tmp_path / "m.onnx", scheme)
    with pytest.raises(BuildError, match=r"'dq_stem_b'.*leave biases in floating point"):
        tensorrt_rtx.preflight(graph, ADA, "int8")
    with pytest.raises(BuildError, match=r"'dq_stem_b'.*Int32"):
        building.build(graph, ADA, tmp_path / "engine")


def test_an_unsupported_operator_is_named_with_what_to_do(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    found = draw.node("NonZero", ["x"], "where")
    number = draw.node("Cast", [found], "number", to=onnx.TensorProto.FLOAT)
    graph = draw.save(tmp_path / "m.onnx", number, (2, 8))
    with pytest.raises(BuildError, match=r"'where'.*outside of the engine"):
        tensorrt_rtx.preflight(graph, ADA, "fp32")


def test_scales_for_each_channel_of_an_activation_are_refused(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    grid = [
        draw.constant("scales", np.full(graphs.CHANNELS, 0.1, np.float32)),
        draw.constant("zeros", np.zeros(graphs.CHANNELS, np.int8)),
    ]
    codes = draw.node("QuantizeLinear", ["x", *grid], "q", axis=1)
    values = draw.node("DequantizeLinear", [codes, *grid], "dq", axis=1)
    graph = draw.save(tmp_path / "m.onnx", draw.conv(values, "c"), graphs.IMAGE)
    with pytest.raises(BuildError, match=r"'q' .*one scale per tensor"):
        tensorrt_rtx.preflight(graph, ADA, "int8")


def test_every_architecture_is_a_target_or_explains_itself() -> None:
    offered = tensorrt_rtx.targets(tensorrt_rtx.ARCHS)
    assert all(entry.cannot_build == "" for entry in offered)
    (hopper,) = tensorrt_rtx.targets(("sm_90",))
    assert "sm_90 is not supported by TensorRT-RTX" in hopper.cannot_build


def test_an_engine_for_another_architecture_does_not_run_here() -> None:
    absent = building.rtx("sm_1")
    assert trt_session.cannot_run(absent)
    with pytest.raises(MissingBackendError):
        trt_session.open_session(b"", absent)


def test_a_cut_engine_is_recognized(tmp_path: Path) -> None:
    graph = graphs.chain(tmp_path / "m.onnx", ["conv"])
    out = tmp_path / "engine"
    building.build(graph, ADA, out)
    engine = out.read_bytes()
    assert problem(engine, building.rtx("sm_89")) == ""
    assert "header says" in problem(engine[:-1], building.rtx("sm_89"))
    assert "expected sm_86" in problem(engine, building.rtx("sm_86"))
    assert "does not start" in problem(b"\0" * len(engine), building.rtx("sm_89"))
    assert "fewer than a header" in problem(b"vtrt", building.rtx("sm_89"))


def test_a_recurrent_network_builds_and_its_loop_is_no_layer(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    generator = np.random.default_rng(0)
    sizes = {"w": (1, 32, 4), "r": (1, 32, 8), "b": (1, 64)}
    weights = [
        draw.constant(name, generator.standard_normal(shape).astype(np.float32))
        for name, shape in sizes.items()
    ]
    output = draw.node("LSTM", ["x", *weights], "lstm", hidden_size=8)
    graph = draw.save(tmp_path / "m.onnx", output, (10, 1, 4))
    layers = building.build(graph, building.rtx("sm_89"), tmp_path / "engine").layers
    assert layers.layers
    assert {"cjmp", "jmp"}.isdisjoint(layer.kind for layer in layers.layers)


def test_an_input_that_is_a_shape_is_refused_by_name(tmp_path: Path) -> None:
    kind = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Relu", ["x"], ["r"], name="relu"),
            onnx.helper.make_node("Reshape", ["r", "size"], ["y"], name="reshape"),
        ],
        "g",
        [
            onnx.helper.make_tensor_value_info("x", kind.FLOAT, [4, 4]),
            onnx.helper.make_tensor_value_info("size", kind.INT64, [2]),
        ],
        [onnx.helper.make_tensor_value_info("y", kind.FLOAT, ["a", "b"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    found = read_graph(tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"input 'size'.*make it a constant of the model"):
        building.build(found, ADA, tmp_path / "engine")
