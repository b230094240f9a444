"""What is said of an engine's layers: few lines, by cause, and none where all is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.backends import building, graphs
from trtbuild.backends import tensorrt_rtx
from trtbuild.engine import Layer, Layers
from trtbuild.graph.operands import operand_precisions
from trtbuild.pipeline.engines import requested
from trtbuild.report.layer_findings import layer_findings

if TYPE_CHECKING:
    from pathlib import Path

RTX = building.rtx("sm_89")


def layer(name: str, precision: str = "int8", **more: object) -> Layer:
    plain = Layer(name=name, kind="k", precision=precision, compute=True, nodes=(f"/{name}",))
    changed = {"requested": "int8", **more}
    if "role" in more:
        changed |= {"compute": False, "requested": ""}
    return msgspec.convert(msgspec.to_builtins(plain) | changed, Layer)


def found(*layers: Layer) -> tuple[str, ...]:
    return layer_findings(Layers(layers=layers), RTX)


def test_an_engine_that_is_as_the_network_asks_has_no_findings() -> None:
    kept = layer("kept", "fp32", requested="fp32")
    narrower = layer("packed", "int8", requested="fp16")
    assert found(layer("a"), kept, narrower, layer("old", "fp32", requested="")) == ()


def test_layers_that_fell_short_stand_together_by_cause_the_most_first() -> None:
    short = [layer(f"conv{n}", "fp32") for n in range(5)]
    half = layer("fc", "fp16")
    lines = found(half, *short, layer("good"))
    assert len(lines) == 2
    assert "5 of 7 compute layers are asked for in int8 and computed in fp32" in lines[0]
    assert "/conv0, /conv1, /conv2 and 2 more" in lines[0]
    assert "--keep-float" in lines[0]
    assert "1 of 7 compute layers is asked for in int8 and computed in fp16: /fc." in lines[1]


def test_layers_that_only_convert_are_counted_with_types_and_bytes_where_told() -> None:
    moves = [
        layer(str(n), role="reformat", reads="fp16", writes="fp32", moved_bytes=1 << 20)
        for n in range(2)
    ]
    layout = layer("t", role="reformat", reads="fp16", writes="fp16", moved_bytes=1 << 20)
    quantize = layer("q", role="quantize", reads="fp16", writes="int8")
    lines = found(*moves, layout, quantize)
    assert lines[0].startswith("1 layer only quantizes or dequantizes: /q.")
    assert lines[1].startswith(
        "3 layers only change layout or type (3.0 MiB read and written per call): "
        "2 from fp16 to fp32, 1 from fp16 to another layout."
    )


def test_the_few_changes_of_layout_that_every_engine_has_are_not_worth_a_line() -> None:
    move = layer("m", role="reformat", reads="int8", writes="int8")
    assert found(move, *(layer(str(n)) for n in range(9))) == ()
    assert len(found(move, *(layer(str(n)) for n in range(8)))) == 1


def test_what_was_not_read_or_not_told_is_said_and_not_hidden() -> None:
    (line,) = layer_findings(Layers(layers=(), unread="no JSON"), RTX)
    assert line.startswith("layers could not be read: no JSON. ")
    (line,) = found(layer("opaque", "unknown"))
    assert "the precision of 1 of 1 compute layer is not told: /opaque" in line


@pytest.mark.rtx
@pytest.mark.parametrize(("arch", "expected"), [("sm_75", "fp32"), ("sm_89", "int8")])
def test_convolutions_of_a_real_engine_fall_short_on_turing_and_nowhere_else(
    arch: str, expected: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", tensorrt_rtx.SCHEME)
    record = building.build(graph, building.rtx(arch), tmp_path / "engine")
    layers = requested(record.layers, operand_precisions(graph))
    products = {(each.requested, each.precision) for each in layers.layers if each.compute}
    assert products == {("int8", expected)}
    lines = layer_findings(layers, building.rtx(arch))
    if arch == "sm_89":
        assert lines == ()
    else:
        assert ("computed in fp32" in lines[0], "sm_75" in lines[0]) == (True, True)
        assert "only quantize or dequantize" in lines[1]
        weights = [each for each in layers.layers if each.nodes == ("dq_stem_w",)]
        assert [(w.role, w.reads, w.writes) for w in weights] == [("quantize", "int8", "fp32")]
