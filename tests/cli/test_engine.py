"""``trtbuild engine``: the main job by its command, and every way it can go wrong."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.cli.running import command
from tests.pipeline import models
from trtbuild.backends import processor
from trtbuild.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.running import Done

    Run = Callable[..., Done]

ORT = ("--backend", "onnxruntime")
RTX = ("--backend", "tensorrt-rtx")
TENSORRT = ("--backend", "tensorrt")
OPTION = (*RTX, "--build-option")
INT8 = ("--precision", "int8", *ORT, "--method", "minmax")
DATA = ("--calibration", "data.npz")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model, data, and a store beside them."""
    models.classifier(tmp_path / "model.onnx")
    models.data(tmp_path / "data.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTBUILD_STORE", str(tmp_path / "store"))
    return tmp_path


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    assert folder == Path.cwd()
    return functools.partial(command, monkeypatch, capfd)


def refused(done: Done, code: int, *parts: str) -> None:
    """One message with all ``parts``, the exit code, nothing on stdout, no engine."""
    assert done.code == code, done.err
    assert not done.out
    for part in parts:
        assert part in done.message
    assert str(Path.cwd() / "store" / "v1" / "tmp") not in done.message
    if (Path.cwd() / "store").is_dir():
        assert not list(Store.open("store").records("engine"))


def test_an_int8_engine_is_built_measured_and_reported(run: Run, folder: Path) -> None:
    done = run("engine", "model.onnx", *INT8, *DATA, "--json", "--markdown", "out/report.md")
    assert done.code == 0, done.err
    (engine,) = done.document["engines"]
    assert engine["precision_achieved"] == {"int8": 3}
    assert engine["int8_mac_share"] == 1.0
    assert (engine["backend"], engine["arch"]) == ("onnxruntime", processor.arch())
    verification = engine["verification"]
    assert verification["measured_on"] == "device"
    assert verification["latency_ms"]["batch_size"] == 8
    assert verification["baseline"] == "the same engine in fp32"
    assert verification["outputs"][0]["sqnr_db"] > 30
    assert "nothing was gated" in (folder / "out/report.md").read_text()
    assert Path(engine["path"]).read_bytes() == Store.open("store").read(engine["sha256"])
    assert "calibrate" in done.err

    again = run("engine", "model.onnx", *INT8, *DATA)
    assert again.code == 0
    assert "full cache hit" in again.out
    assert not again.err


@pytest.mark.rtx
def test_engines_for_absent_gpus_are_judged_by_their_twin(run: Run) -> None:
    """No architecture is named, so those that the model is not for are skipped."""
    options = ("--precision", "int8", *DATA, "--backend", "tensorrt-rtx", "--json")
    done = run("engine", "model.onnx", *options)
    assert done.code == 0, done.err
    engines = done.document["engines"]
    archs = [engine["arch"] for engine in engines]
    assert archs == ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]
    for engine in engines:
        assert engine["precision_achieved"] == {"int8": 3}
        assert engine["verification"]["measured_on"] == "twin"
        assert engine["verification"]["latency_ms"] is None
        assert engine["verification"]["no_latency"]
    (skipped,) = done.document["skipped_targets"]
    assert skipped["target"] == "tensorrt-rtx:sm_75"
    assert "sm_75 computes it in float" in skipped["reason"]
    assert len([row for row in done.document["calibration"] if row["chosen"]]) == 1


def cut(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")


def text(folder: Path) -> None:
    (folder / "model.onnx").write_text("this is a readme, not a model\n")


def corrupt(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[:400] = content[:400][::-1]
    (folder / "model.onnx").write_bytes(content)


def absent(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def move_weights(folder: Path, location: str) -> None:
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="weights.bin",
    )
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = location
    onnx.save(model, folder / "model.onnx")
    (folder / "weights.bin").rename(folder.parent / "weights.bin")


def weights_missing(folder: Path) -> None:
    move_weights(folder, "weights.bin")


def weights_outside(folder: Path) -> None:
    move_weights(folder, "../weights.bin")


def nothing_to_quantize(folder: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    shape = ("batch", *models.IMAGE)
    models.save(
        folder / "model.onnx",
        [node],
        {},
        [models.floats("x", *shape)],
        [models.floats("y", *shape)],
    )


def quantized_already(folder: Path) -> None:
    constants: dict[str, models.Array] = {
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="to_int8"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="back"),
    ]
    shape = ("batch", *models.IMAGE)
    models.save(
        folder / "model.onnx",
        nodes,
        constants,
        [models.floats("x", *shape)],
        [models.floats("y", *shape)],
    )


@pytest.mark.parametrize(
    ("spoil", "code", "part"),
    [
        (cut, 2, "model.onnx"),
        (empty, 2, "empty"),
        (text, 2, "model.onnx"),
        (corrupt, 2, "model.onnx"),
        (absent, 2, "no such file"),
        (weights_missing, 2, "weights.bin"),
        (weights_outside, 2, "outside"),
        (nothing_to_quantize, 4, "nothing can be quantized"),
        (quantized_already, 4, "quantized already"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_message_and_no_engine(
    spoil: Callable[[Path], None], code: int, part: str, run: Run, folder: Path
) -> None:
    spoil(folder)
    refused(run("engine", "model.onnx", *INT8, *DATA), code, part)


GOOD = "yield {'x': x}"


@pytest.mark.parametrize(
    ("calibration", "evaluation", "parts"),
    [
        ("raise RuntimeError('disk on fire')\n    yield", GOOD, ["disk on fire", "batch 0"]),
        ("return iter(())", GOOD, ["calibration_batches yields no batch"]),
        (GOOD, "return iter(())", ["evaluation_batches yields no batch"]),
        ("yield {'z': x}", GOOD, ["'x'", "'z'"]),
        ("yield {'x': x.astype('f8')}", GOOD, ["float64", "float32"]),
        ("yield {'x': x[0]}", GOOD, ["[3, 16, 16]"]),
        ("yield {'x': x * np.nan}", GOOD, ["NaN", "batch 0"]),
        (GOOD, "yield {'x': x}\n    yield {'x': x * np.inf}", ["batch 1", "infinite"]),
        ("yield [x]", GOOD, ["list"]),
        ("import sys; sys.exit(0); yield", GOOD, ["SystemExit"]),
    ],
)
def test_data_that_is_wrong_is_told_with_provider_batch_and_tensor(
    calibration: str, evaluation: str, parts: list[str], run: Run, folder: Path
) -> None:
    (folder / "bad.py").write_text(
        "import numpy as np\nx = np.ones((4, 3, 16, 16), np.float32)\n"
        f"def calibration_batches():\n    {calibration}\n"
        f"def evaluation_batches():\n    {evaluation}\n"
    )
    done = run("engine", "model.onnx", *INT8, "--calibration", "bad.py")
    assert done.code == 2, done.err
    assert not done.out
    for part in ("bad.py", *parts):
        assert part in done.message


@pytest.mark.usefixtures("folder")
def test_techniques_are_applied_as_named_and_remembered(run: Run) -> None:
    named = ("--technique", "equalize", "--technique", "rounding", "--technique", "bias")
    done = run("engine", "model.onnx", *INT8, *DATA, *named, "--json")
    assert done.code == 0, done.err
    (row,) = done.document["calibration"]
    assert row["chosen"]
    assert row["method"].endswith("minmax + rounding + bias")
    plain = run("engine", "model.onnx", *INT8, *DATA, "--technique", "none", "--json")
    assert plain.document["engines"][0]["sha256"] != done.document["engines"][0]["sha256"]
    again = run("engine", "model.onnx", *INT8, *DATA, *named, "--json")
    assert again.document["full_cache_hit"]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("model.onnx", "--precision", "int8"), 2, ["--calibration", "never used silently"]),
        (("model.onnx", "--precision", "fp16", "--technique", "smooth"), 2, ["fp16", "smooth"]),
        (("model.onnx", "--precision", "fp16", "--rest", "fp32"), 2, ["fp16", "rest = 'fp32'"]),
        (("model.onnx", "--precision", "tf32"), 2, ["tf32", "int8"]),
        (("model.onnx", "--precision", "int7"), 2, ["int7", "int8"]),
        (("model.onnx", "--method", "guess", *ORT), 2, ["guess", "entropy"]),
        (("model.onnx", "--technique", "magic", *ORT), 2, ["magic", "smooth"]),
        (("model.onnx", "--technique", "none", "--technique", "bias", *ORT), 2, ["none"]),
        (("model.onnx", "--precision", "bf16", *ORT), 2, ["bf16", "onnxruntime"]),
        (("model.onnx", "--arch", "sm_90"), 3, ["sm_90", "sm_89", "--backend tensorrt builds"]),
        (("model.onnx", "--arch", "9.0"), 3, ["sm_90", "sm_89"]),
        (("model.onnx", "--arch", "SM89", *ORT), 2, ["sm_89", "onnxruntime"]),
        (("model.onnx", "--backend", "tpu"), 2, ["tpu", "onnxruntime"]),
        (("model.onnx", "--arch", "banana"), 2, ["banana", "sm_89"]),
        (("model.onnx", "--arch", "banana", *RTX), 2, ["banana", "sm_89"]),
        (("model.onnx", "--optimization-level", "2", *ORT), 2, ["optimization_level"]),
        (
            ("model.onnx", *RTX, "--version-compatible"),
            2,
            ["(--version-compatible)", "only in the version", "--backend tensorrt,"],
        ),
        (("model.onnx", *RTX, "--plugin", "a.so"), 2, ["(--plugin)", "no plug-ins"]),
        (("model.onnx", *OPTION, "refit=True"), 2, ["refit", "true or false", "'True'"]),
        (("model.onnx", *OPTION, "refti=true"), 2, ["refti", "Did you mean 'refit'?"]),
        (("model.onnx", *OPTION, "workspace_mib=0"), 2, ["workspace_mib = 0", "from 1 to"]),
        (("model.onnx", *OPTION, f"l2_limit_kib={9**40}"), 2, ["l2_limit_kib"]),
        (
            ("model.onnx", *OPTION, "refit=true", "--build-option", "refit=false"),
            2,
            ["refit", "one"],
        ),
        (
            ("model.onnx", *OPTION, "optimization_level=2", "--optimization-level", "3"),
            2,
            ["optimization_level = 3 was given already"],
        ),
        (("model.onnx", *TENSORRT, "--plugin", "gone.so"), 2, ["gone.so", "--plugin"]),
        (("model.onnx", *TENSORRT, "--timing-cache", "pinned:gone"), 2, ["gone is no file"]),
        (("model.onnx", *TENSORRT, "--timing-cache", "gone/times"), 2, ["gone is no folder"]),
        (("model.onnx", *INT8, "--calibration", "gone.npz"), 2, ["gone.npz"]),
        (("model.onnx", *INT8, *DATA, "--keep-float", "haed"), 2, ["'haed'", "head"]),
        (("model.onnx", *ORT, "--markdown", "store/.."), 2, ["--markdown", "directory"]),
        (("model", *ORT), 2, ["'model'", ".onnx"]),
        (("gone.toml", *ORT), 2, ["gone.toml"]),
        pytest.param(
            *(("gone.py:factory", *ORT), 2, ["gone.py"]), marks=pytest.mark.frameworks
        ),
        (("model.onnx", *ORT, "--store", "model.onnx"), 6, ["not a folder", "--store"]),
        (("model.onnx", *ORT, "--store", "/proc/store"), 6, ["/proc/store", "--store"]),
        (("model.onnx", *ORT, "--store", "ftp://bucket"), 2, ["ftp", "s3"]),
    ],
)
def test_a_call_that_cannot_work_is_refused_with_its_reason(
    arguments: tuple[str, ...], code: int, parts: list[str], run: Run
) -> None:
    refused(run("engine", *arguments), code, *parts)


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--max-drop", "-1", "not in the range x>=0"),
        ("--max-drop", "nan", "not a number that can be compared"),
        ("--min-speedup", "0", "not more than 0"),
    ],
)
def test_a_limit_that_is_none_is_refused(option: str, value: str, part: str, run: Run) -> None:
    done = run("engine", "model.onnx", *ORT, option, value)
    assert (done.code, done.out) == (2, "")
    assert f"'{option}'" in done.err
    assert part in done.err


X = "x:{}x3x16x16"


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [
        (["x:1x3x16x16,8x3x16x16"], ["NAME:MIN,OPT,MAX"]),
        (["x:axb"], ["NAME:MIN,OPT,MAX"]),
        (["1x3x16x16"], ["NAME:MIN,OPT,MAX"]),
        (["x:0x3x16x16"], ["1 <= min"]),
        (["x:8x3x16x16,4x3x16x16,9x3x16x16"], ["min <= opt <= max"]),
        (["x:1x3x16x16,2x3x16"], ["NAME:MIN,OPT,MAX"]),
        (["x:1x3x16x16,2x3x16,2x3x16x16"], ["one rank"]),
        (["x:1x3x16"], ["3 axes"]),
        (["images:1x3x16x16"], ["images", "expected one of x"]),
        (["x:1x3x16x16", "x:2x3x16x16"], ["already"]),
    ],
)
def test_a_profile_that_does_not_fit_is_told(
    shapes: list[str], parts: list[str], run: Run
) -> None:
    options = [option for shape in shapes for option in ("--shape", shape)]
    refused(run("engine", "model.onnx", *ORT, *options), 2, *parts)


def test_a_profile_of_another_size_than_the_models_is_told(run: Run) -> None:
    done = run("engine", "model.onnx", *ORT, "--shape", "x:1x3x32x32")
    refused(done, 2, "axis 2 is fixed at 16")


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ("[source]\nonnx = 'model.onnx'\n[gate]\nmax_drop = 1", ["gate"]),
        ("[source]\nonnx = 'model.onnx'\n[gates]\nmax_drop = 'no'", ["[gates] max_drop"]),
        ("[source]\nonnx = 'm'\ntorch = 'n'", ["[source]", "exactly one"]),
        ("[source]\nonnx = 'model.onnx'\n[quantization]\nprecision = 'int8'", ["data"]),
        ("[source]\nonnx = 'model.onnx'\n[build]\ntargets = ['tpu']", ["tpu"]),
        ("[source\n", ["TOML"]),
    ],
)
def test_a_recipe_that_is_wrong_is_told_with_its_table_and_key(
    tables: str, parts: list[str], run: Run, folder: Path
) -> None:
    (folder / "bad.toml").write_text(tables)
    refused(run("engine", "bad.toml"), 2, *parts)


def test_json_is_the_only_thing_on_stdout_though_user_code_prints(
    run: Run, folder: Path
) -> None:
    (folder / "loud.py").write_text(
        "import os, sys, numpy as np\n"
        "print('loading')\n"
        "def calibration_batches():\n"
        "    print('yielding')\n"
        "    yield {'x': np.ones((4, 3, 16, 16), np.float32)}\n"
        "evaluation_batches = calibration_batches\n"
        "def metric(outputs, batch):\n"
        "    print('judging')\n"
        "    return outputs['y'][:, 0]\n"
    )
    done = run("engine", "model.onnx", *ORT, "--calibration", "loud.py", "--json")
    assert done.code == 0, done.err
    assert done.document["passed"] is True
    for word in ("loading", "yielding", "judging"):
        assert word in done.err


def test_a_failed_gate_leaves_with_5_and_says_what_to_try(run: Run, folder: Path) -> None:
    models.with_metric(models.recipe(folder))
    done = run("engine", "model.onnx", *INT8, "--calibration", "provider.py", "--max-drop", "0")
    assert done.code == 5
    assert "try:" in done.out
    assert "FAILED" in done.out


def test_a_model_of_one_fixed_batch_takes_data_in_other_batches(run: Run, folder: Path) -> None:
    models.classifier(folder / "model.onnx", batch=3)
    done = run("engine", "model.onnx", *INT8, *DATA, "--json")
    assert done.code == 0, done.err
    verification = done.document["engines"][0]["verification"]
    assert verification["latency_ms"]["batch_size"] == 3
    assert verification["samples"] == 6, "two batches of 3 of the 8 samples for evaluation"


def test_too_few_samples_for_one_fixed_batch_are_told(run: Run, folder: Path) -> None:
    models.classifier(folder / "model.onnx", batch=64)
    done = run("engine", "model.onnx", *INT8, *DATA)
    refused(done, 2, "data.npz", "batches of 64", "32 samples")
