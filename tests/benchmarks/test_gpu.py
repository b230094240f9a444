"""What of the GPU benchmark runs without a GPU: its arguments, what is missing, its tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytestmark = pytest.mark.frameworks

from tests.benchmarks import gpu, gpu_models, gpu_rivals  # noqa: E402  the mark must stand first
from tests.pipeline import models  # noqa: E402  as above
from trtbuild.backends import gpu as driver  # noqa: E402  as above
from trtbuild.store import Store  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path


def test_it_says_what_is_missing_and_runs_nothing_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if driver.archs():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu", "--models", "resnet50", "--backend", "nobody"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 3
    printed = capsys.readouterr()
    assert "no NVIDIA GPU or driver" in printed.err
    assert "no backend nobody" in printed.err
    assert printed.out == ""


def test_a_table_is_markdown() -> None:
    assert gpu.table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_detector_has_boxes_and_scores_of_equal_number() -> None:
    import torch  # noqa: PLC0415  as the mark says

    boxes, scores = gpu_models.detector()(torch.zeros(1, 3, 224, 224))
    assert boxes.shape == (1, 6 * (7 * 7 + 4 * 4), 4)
    assert scores.shape == (1, 6 * (7 * 7 + 4 * 4), 80)


def test_onnx_runtime_gets_the_fp16_network_unless_fp32_is_raced(tmp_path: Path) -> None:
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="fp32", provider=None
    )
    store = Store.open(str(tmp_path / "store"))
    x = models.images(2)
    outputs = []
    for precision, kind in (
        ("fp32", onnx.TensorProto.FLOAT),
        ("int8", onnx.TensorProto.FLOAT16),
    ):
        folder = tmp_path / precision
        folder.mkdir()
        rivals = gpu_rivals.Rivals(recipe=recipe, store=store, precision=precision)
        path = rivals.graph(folder)
        model = onnx.load(path).graph
        kinds = {weight.name: weight.data_type for weight in model.initializer}
        convs = [node for node in model.node if node.op_type == "Conv"]
        assert [kinds[node.input[1]] for node in convs] == [kind] * 2
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"x": x})[0])
    assert outputs[1].dtype == np.float32
    np.testing.assert_allclose(outputs[1], outputs[0], atol=0.01)
