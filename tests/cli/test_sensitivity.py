"""``trtbuild sensitivity``: figures that say how they were found, and files that are used."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import command
from tests.pipeline import models
from trtbuild.quantization.policy import load_policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Done

    Run = Callable[..., Done]

DATA = ("--calibration", "data.npz", "--method", "minmax")


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    models.classifier(tmp_path / "model.onnx")
    models.data(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTBUILD_STORE", str(tmp_path / "store"))
    return functools.partial(command, monkeypatch, capfd)


def test_every_node_has_a_cost_a_saving_and_a_time_where_the_device_is_here(run: Run) -> None:
    done = run("sensitivity", "model.onnx", *DATA, "--backend", "onnxruntime", "--json")
    assert done.code == 0, done.err
    report = done.document
    nodes = {node["node"]: node for node in report["nodes"]}
    assert set(nodes) == {"stem", "inner", "head"}
    assert sum(node["noise_share"] for node in nodes.values()) == pytest.approx(1, abs=1e-5)
    assert sum(node["mac_share"] for node in nodes.values()) == pytest.approx(1, abs=1e-5)
    assert all(node["measured"] and node["drop"] is None for node in nodes.values())
    assert all(node["float_ms"] > 0 and node["quantized_ms"] > 0 for node in nodes.values())
    assert nodes["head"]["weight_bytes"] == 4 * models.CHANNELS * models.CLASSES
    assert (report["runs"], report["metric"]) == (3, "")

    again = run("sensitivity", "model.onnx", *DATA, "--backend", "onnxruntime")
    assert again.code == 0
    assert "measured" in again.out
    assert "no metric" in again.out
    assert "try group" not in again.err, "every figure is in the store"


def test_a_limit_writes_a_policy_and_the_picture_of_the_front_never_changes(run: Run) -> None:
    pytest.importorskip("matplotlib")
    options = (*DATA, "--backend", "tensorrt-rtx")
    worst = run("sensitivity", "model.onnx", *options, "--json").document["nodes"][0]
    limit = worst["sqnr_db"] + 1
    files = ("--out", "p/policy.toml", "--plot", "p/front.svg")
    done = run("sensitivity", "model.onnx", *options, *files, "--min-sqnr", limit)
    assert done.code == 0, done.err
    text = Path("p/policy.toml").read_text()
    assert worst["node"] in load_policy(Path("p/policy.toml")).nodes
    assert "% of the MACs, SQNR" in text
    assert "(measured)" in text
    first = Path("p/front.svg").read_bytes()
    assert b"multiply-accumulates in INT8" in first
    run("sensitivity", "model.onnx", *options, *files, "--min-sqnr", limit)
    assert Path("p/front.svg").read_bytes() == first

    kept = ("--keep", "1", "--out", "one.toml")
    done = run("sensitivity", "model.onnx", *options, *kept)
    assert done.code == 0
    assert len(load_policy(Path("one.toml")).nodes) == 1
    assert "NaN" not in done.out, "no metric is no bad metric"
    assert " units of" not in done.out


def test_a_limit_that_no_policy_reaches_fails_and_writes_nothing(run: Run) -> None:
    limit = ("--min-sqnr", "200", "--out", "policy.toml")
    done = run("sensitivity", "model.onnx", *DATA, "--backend", "onnxruntime", *limit)
    assert done.code == 5
    assert "no policy reaches 200 dB" in done.message
    assert re.search(r"best that was tried has \d\d\.\d dB, with 2 of 3 nodes", done.message)
    assert "Policies that were tried" in done.out
    assert not Path("policy.toml").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((), "--calibration"),
        ((*DATA, "--out", "policy.toml"), "--max-drop, --min-sqnr or --keep"),
        ((*DATA, "--keep", "1", "--min-sqnr", "20"), "each decides alone"),
        ((*DATA, "--max-drop", "0.1"), "no metric"),
        ((*DATA, "--plot", "front.pdf"), ".svg or .png"),
        ((*DATA, "--precision", "fp16"), "to int8 or fp8"),
        ((*DATA, "--precision", "int4"), "to int8 or fp8"),
        ((*DATA, "--keep", "3"), "has 3 nodes that can be quantized"),
    ],
)
def test_a_call_that_cannot_work_is_refused(
    options: tuple[str, ...], part: str, run: Run
) -> None:
    done = run("sensitivity", "model.onnx", *options)
    assert (done.code, done.out) == (2, "")
    assert part in done.message
