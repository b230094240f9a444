"""What of the GPU benchmark runs without a GPU: its arguments, what is missing, its tables."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

pytestmark = pytest.mark.frameworks

from tests.benchmarks import gpu, gpu_models, gpu_rivals  # noqa: E402  the mark must stand first
from tests.benchmarks.gpu_rivals import Rival  # noqa: E402  as above
from tests.pipeline import models  # noqa: E402  as above
from trtbuild.backends import gpu as driver  # noqa: E402  as above
from trtbuild.backends import nvml, processor  # noqa: E402  as above
from trtbuild.backends.session import SessionOptions  # noqa: E402  as above
from trtbuild.report.document import Report, SkippedTarget, SourceReport  # noqa: E402  as above
from trtbuild.store import Store  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


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


class Tensor:
    """Stands for one of PyTorch on a GPU."""

    def __init__(self, value: int) -> None:
        self.value = np.array([value])

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> npt.NDArray[np.int64]:
        return self.value


@pytest.mark.parametrize(
    ("result", "names"),
    [({"embedding": Tensor(0)}, ["embedding"]), ((Tensor(0), Tensor(1)), ["0", "1"])],
)
def test_a_model_may_give_names_to_what_it_returns(result: object, names: list[str]) -> None:
    found = gpu_rivals.arrays_of(result)
    assert [(name, each.item()) for name, each in found.items()] == [
        (name, index) for index, name in enumerate(names)
    ]
    assert list(gpu_rivals.arrays_of(Tensor(7))) == ["0"]


def test_a_rival_that_fails_when_called_is_missing_and_the_others_run() -> None:
    def works(arrays: gpu_rivals.Arrays) -> dict[str, object]:
        calls.append(threading.get_ident())
        return dict(arrays)

    def fails(arrays: gpu_rivals.Arrays) -> dict[str, object]:
        return {"y": arrays["x"]}

    def asserts(_arrays: gpu_rivals.Arrays) -> dict[str, object]:
        if threading.get_ident() != here:
            raise RuntimeError("graphs of another thread")
        return {}

    calls: list[int] = []
    here = threading.get_ident()
    rivals = gpu_rivals.Rivals(recipe=Any, store=Any, precision="fp32")  # type: ignore[arg-type]  # neither is read
    found = rivals.working(
        {
            "broken": lambda: Rival(fails, works),
            "threads": lambda: Rival(asserts, asserts),
            "good": lambda: Rival(works, works),
        },
        {},
    )
    assert list(found) == ["good"]
    assert rivals.missing == [
        "broken: KeyError: 'x'",
        "threads: RuntimeError: graphs of another thread",
    ]
    assert len(calls) == 4
    assert calls[:2] == [here] * 2
    assert here not in calls[2:]


def test_onnx_runtime_on_the_processor_is_not_raced_as_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Session:
        def __init__(self, _path: str, providers: list[tuple[str, dict[str, int]]]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    asked: list[tuple[str, dict[str, int]]] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(RuntimeError, match="did not start, CPUExecutionProvider took"):
        gpu_rivals.onnx_runtime(tmp_path)
    assert asked == [("CUDAExecutionProvider", {"use_tf32": 0})]


def test_a_race_tells_everything_here_but_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small model on the processor: the rivals are missing, and say why."""
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="fp32", provider=None
    )
    monkeypatch.setattr(gpu, "_recipe", lambda *_: recipe)
    monkeypatch.setattr(driver, "archs", lambda: (processor.arch(),))
    monkeypatch.setattr(gpu, "SessionOptions", lambda **_: SessionOptions())
    monkeypatch.setattr(gpu, "_SECONDS", 0.05)
    monkeypatch.setattr(gpu, "_THREADS", (1, 2))
    gpu.race("small", "fp32", "onnxruntime", tmp_path)
    printed = capsys.readouterr().out
    assert " | trtbuild, CUDA graphs (throttling not watched) | " in printed
    assert "- trtbuild, no graphs over trtbuild, CUDA graphs: " in printed
    assert "- missing: torch.compile fp32: " in printed
    assert "- missing: ONNX Runtime CUDA fp32: RuntimeError: no CUDA provider" in printed
    assert "- inferences/s by threads: 1: " in printed


def test_a_model_without_an_engine_is_told_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "archs", lambda: ("sm_90",))
    recipe = models.recipe(tmp_path, "tensorrt:sm_90")
    monkeypatch.setattr(gpu, "_recipe", lambda *_: recipe)
    gpu.race("small", "fp32", "tensorrt", tmp_path)
    assert capsys.readouterr().out.startswith("\nsmall fp32: no engine: ")


def test_a_target_that_is_skipped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "archs", lambda: ("sm_90",))
    monkeypatch.setattr(gpu, "_recipe", lambda *_: None)
    skipped = SkippedTarget(target="tensorrt:sm_90", reason="it is not installed")
    source = SourceReport(framework="torch", digest="")
    report = Report(recipe="", source=source, stages=(), engines=(), skipped_targets=(skipped,))
    monkeypatch.setattr(gpu, "build_recipe", lambda *_, **__: report)
    assert gpu.built("small", "fp32", "tensorrt", tmp_path) == "it is not installed"


def test_a_report_says_how_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(nvml, "describe", lambda: {"driver": "580.95"})
    told = gpu.conditions(["--models", "a b"])
    assert "command: python -m tests.benchmarks.gpu --models 'a b'\n" in told
    assert "driver: 580.95\n    CUDA of the driver: 13.0\n" in told


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
