"""PyTorch modules are exported with their own names, and never with silently wrong numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from trtbuild.backends.ort_session import open_graph
from trtbuild.engine import ShapeRange
from trtbuild.errors import DataError, ExportError, RecipeError, SourceError
from trtbuild.sources import ExportRequest, torch_module
from trtbuild.sources.dependencies import changed
from trtbuild.sources.torch_names import named_outputs
from trtbuild.sources.tracing import traced

if TYPE_CHECKING:
    from trtbuild.graph import Graph

pytestmark = pytest.mark.frameworks

MODELS = """
from collections import namedtuple
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images, bias, scale=None):
        print("forward runs")
        maps = torch.relu(self.norm(self.conv(images)))
        return {"scores": maps.mean((2, 3)) + bias, "parts": (maps, None), "bias": bias}


def net():
    torch.manual_seed(0)
    return Net()


class Branch(nn.Module):
    def forward(self, x):
        return x * 2 if x.shape[0] == 2 else x + 1


class DataBranch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return x + 1


Pair = namedtuple("Pair", ["first", "second"])


class Apart(nn.Module):
    def forward(self, a, b):
        return Pair(a * 2, b + 1)


class Pool(nn.Module):
    def forward(self, x):
        return x.flatten(1).mean(1), x.reshape(x.shape[0], 3, -1)


class Even(nn.Module):
    def forward(self, x):
        return x.reshape(-1, 2, 3).sum(1)


class Anything(nn.Module):
    def forward(self, *args):
        return args[0]


class Embed(nn.Module):
    def forward(self, ids):
        return nn.functional.one_hot(ids, 10)


def scripted():
    return torch.jit.script(Pool())


def number():
    return 3


def stored():
    from safetensors.torch import load_file

    net = nn.Linear(3, 2)
    net.load_state_dict(load_file(Path(__file__).parent / "weights.safetensors"))
    return net
"""

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(MODELS)
    return tmp_path


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def export(folder: Path, name: str, example: Arrays | None, *profiles: ShapeRange) -> Graph:
    request = ExportRequest(
        location=f"nets.py:{name}",
        folder=folder,
        example=example,
        profiles=profiles,
        out=folder / "out.onnx",
    )
    return torch_module.export(request)


def shapes(graph: Graph) -> dict[str, tuple[int | str, ...]]:
    return {spec.name: spec.shape for spec in (*graph.inputs, *graph.outputs)}


def assert_computes(graph: Graph, folder: Path, name: str, inputs: Arrays) -> None:
    expected = torch_module.reference(f"nets.py:{name}", folder).run(inputs)
    got = open_graph(graph.path, fused=False).run(inputs)
    assert list(got) == list(expected)
    for output, array in expected.items():
        np.testing.assert_allclose(got[output], array, rtol=1e-4, atol=1e-5)


def test_a_module_keeps_its_names_and_computes_at_other_batch_sizes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example: Arrays = {"label": np.zeros(1), "bias": noise(1, 4), "images": noise(1, 3, 8, 8)}
    graph = export(folder, "net", example)
    assert shapes(graph) == {
        "images": ("batch", 3, 8, 8),
        "bias": ("batch", 4),
        "scores": ("batch", 4),
        "parts_0": ("batch", 4, 6, 6),
        "bias_output": ("batch", 4),
    }
    for batch in (1, 3, 5):
        inputs = {"images": noise(batch, 3, 8, 8), "bias": noise(batch, 4)}
        assert_computes(graph, folder, "net", inputs)
    told = capsys.readouterr()
    assert told.out == ""
    assert "forward runs" in told.err
    assert str(folder) not in graph.path.read_bytes().decode("latin-1")


def test_the_same_model_has_the_same_digest(folder: Path) -> None:
    example = {"x": noise(2, 3, 4)}
    first = export(folder, "Pool", example)
    assert export(folder, "Pool", {"x": noise(5, 3, 4)}).sha256 == first.sha256


def test_only_axes_proved_equal_share_a_name(folder: Path) -> None:
    graph = export(folder, "Apart", {"a": noise(3, 4), "b": noise(3, 4)})
    assert shapes(graph) == {
        "a": ("batch", 4),
        "b": ("b_axis0", 4),
        "first": ("batch", 4),
        "second": ("b_axis0", 4),
    }


def test_the_profile_says_which_axes_vary(folder: Path) -> None:
    profile = ShapeRange(input="x", min=(1, 3, 2), opt=(4, 3, 6), max=(4, 3, 9))
    graph = export(folder, "Pool", None, profile)
    assert shapes(graph)["x"] == ("batch", 3, "x_axis2")
    fixed = ShapeRange(input="x", min=(2, 3, 4), opt=(2, 3, 4), max=(2, 3, 4))
    graph = export(folder, "Pool", {"x": noise(2, 3, 4)}, fixed)
    assert shapes(graph) == {"x": (2, 3, 4), "output_0": (2,), "output_1": (2, 3, 4)}


def test_a_branch_on_the_traced_size_is_refused(folder: Path) -> None:
    with pytest.raises(
        ExportError, match=r"nets\.py:Branch: input 'x': axis 0 .* fixes it at 2"
    ):
        export(folder, "Branch", {"x": noise(2, 3)})


def test_a_branch_on_another_size_than_the_traced_is_found(folder: Path) -> None:
    with pytest.raises(
        ExportError, match=r"wrong where 'batch' .* is 2.*x\.size\(\)\[0\] != 2"
    ):
        export(folder, "Branch", {"x": noise(3, 3)})
    without = ShapeRange(input="x", min=(3, 3), opt=(3, 3), max=(9, 3))
    graph = export(folder, "Branch", {"x": noise(3, 3)}, without)
    assert_computes(graph, folder, "Branch", {"x": noise(7, 3)})


def test_sizes_that_the_model_itself_refuses_are_no_export_error(folder: Path) -> None:
    graph = export(folder, "Even", {"x": noise(4, 3)})
    assert_computes(graph, folder, "Even", {"x": noise(2, 3)})
    assert_computes(graph, folder, "Even", {"x": noise(6, 3)})


def test_a_branch_on_data_is_told_with_its_line_and_without_colors(folder: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export(folder, "DataBranch", {"x": noise(2, 3)})
    assert "if x.sum() > 0:" in str(caught.value)
    assert "data-dependent" in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("number", "returns a int, expected a torch.nn.Module"),
        ("scripted", "TorchScript"),
        ("Anything", "names no parameter"),
        ("Embed", "'ids'"),
        ("nothing", "has no 'nothing'"),
    ],
)
def test_a_factory_that_cannot_serve_is_a_source_error(
    name: str, part: str, folder: Path
) -> None:
    with pytest.raises(SourceError, match=r"nets\.py") as caught:
        export(folder, name, None)
    assert part in str(caught.value)


def test_an_example_beside_the_factory_serves_where_there_is_no_data(folder: Path) -> None:
    body = "def example():\n    return {'ids': np.ones((2, 5), np.int64)}\n"
    function = f"\n\nimport numpy as np\n\n\n{body}"
    (folder / "nets.py").write_text(MODELS + function)
    graph = export(folder, "Embed", None)
    assert [(spec.dtype, spec.shape) for spec in graph.inputs] == [("int64", ("batch", 5))]


def test_data_that_lacks_an_input_is_a_data_error(folder: Path) -> None:
    with pytest.raises(DataError, match=r"'b', which the data has not; it has 'a'"):
        export(folder, "Apart", {"a": noise(2, 4)})


@pytest.mark.parametrize(
    ("profile", "part"),
    [
        (ShapeRange(input="y", min=(1,), opt=(1,), max=(2,)), "no input of this name.* x"),
        (ShapeRange(input="x", min=(1, 3), opt=(1, 3), max=(2, 3)), r"2 axes.*\[2, 3, 4\]"),
        (
            ShapeRange(input="x", min=(1, 5, 4), opt=(1, 5, 4), max=(2, 5, 4)),
            r"fixes axis 1 at 5.*\[2, 3, 4\]",
        ),
    ],
)
def test_a_profile_that_does_not_fit_is_a_recipe_error(
    profile: ShapeRange, part: str, folder: Path
) -> None:
    with pytest.raises(RecipeError, match=part):
        export(folder, "Pool", {"x": noise(2, 3, 4)}, profile)


def test_the_reference_names_what_is_wrong_with_its_inputs(folder: Path) -> None:
    session = torch_module.reference("nets.py:net", folder)
    assert [spec.name for spec in session.inputs] == ["images", "bias"]
    with pytest.raises(DataError, match=r"nets\.py:net: input 'bias' is missing"):
        session.run({"images": noise(1, 3, 8, 8)})
    with pytest.raises(DataError, match=r"forward raised .*bias float32 \[7, 7\]"):
        session.run({"images": noise(1, 3, 8, 8), "bias": noise(7, 7)})


def test_the_reference_runs_in_eval_mode_without_gradients(folder: Path) -> None:
    session = torch_module.reference("nets.py:net", folder)
    inputs = {"images": noise(4, 3, 8, 8), "bias": noise(4, 4)}
    whole = session.run(inputs)["scores"]
    alone = session.run({name: array[:1] for name, array in inputs.items()})["scores"]
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-5, atol=1e-6)


def test_outputs_are_named_after_what_forward_returns() -> None:
    tensor = torch.zeros(1)
    assert list(named_outputs(tensor, ())) == ["output"]
    assert list(named_outputs((tensor, None, [tensor]), ())) == ["output_0", "output_2_0"]
    assert list(named_outputs({"a": {"b": tensor}, "x": tensor}, ("x",))) == ["a_b", "x_output"]
    with pytest.raises(ExportError, match="two outputs called 'a_b'"):
        named_outputs({"a": {"b": tensor}, "a_b": tensor}, ())
    with pytest.raises(ExportError, match="returns a int at a, expected tensors"):
        named_outputs({"a": 3}, ())


def test_weights_that_safetensors_reads_are_seen(folder: Path) -> None:
    path = folder / "weights.safetensors"
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, path)
    session, dependencies = traced(lambda: torch_module.reference("nets.py:stored", folder))
    assert session.run({"input": np.ones((1, 3), np.float32)})["output"].tolist() == [[3, 3]]
    assert [Path(file.path).name for file in dependencies.files] == [
        "nets.py",
        "weights.safetensors",
    ]
    assert {item.name for item in dependencies.distributions} == {"torch", "safetensors"}
    assert changed(dependencies) == ""
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, path)
    assert "weights.safetensors has changed" in changed(dependencies)
