"""What of the GPU benchmark runs without a GPU: its arguments, what is missing, its tables."""

from __future__ import annotations

import sys

import pytest

pytestmark = pytest.mark.frameworks

from tests.benchmarks import gpu, gpu_models  # noqa: E402  the mark must stand first
from trtbuild.backends import gpu as driver  # noqa: E402  as above


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
