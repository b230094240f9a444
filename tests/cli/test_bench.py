"""``trtbuild bench``: real engines on this processor, in one run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from onnx import helper

import trtbuild
from tests.cli.running import command
from tests.pipeline import models
from tests.store.engines import engine_key, put_engine
from trtbuild.cli.application import app
from trtbuild.engine import Manifest
from trtbuild.store import Store
from trtbuild.verification import rates
from trtbuild.verification.results import Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typer.core import TyperCommand, TyperGroup

    from tests.cli.running import Done

    Run = Callable[..., Done]

SHORT = ("--seconds", "0.05", "--warmup", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store: INT8 with its FP32 baseline, and FP32 of no data."""
    folder = tmp_path_factory.mktemp("bench")
    int8 = models.recipe(folder, "onnxruntime")
    plain = models.with_quantization(int8, precision="fp32", provider=None)
    for recipe in (int8, models.with_profile(plain, 1, 3, 9)):
        trtbuild.build(recipe, folder / "store")
    return folder


@pytest.fixture
def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TRTBUILD_STORE", str(folder / "store"))
    return functools.partial(command, monkeypatch, capfd)


@pytest.fixture
def keys(folder: Path) -> dict[str, str]:
    """Return the keys of the engines ``int8``, ``fp32`` and ``plain``."""
    store = Store.open(str(folder / "store"))
    found = [record.read(Manifest) for record in store.records("engine")]
    return {
        each.precision_requested if '"data.npz"' in each.recipe else "plain": each.key
        for each in found
        if each.preimage.target.backend == "onnxruntime"
    }


def test_two_engines_are_measured_in_one_run(run: Run, keys: dict[str, str]) -> None:
    fp32, int8 = keys["fp32"], keys["int8"]
    options = ("--threads", "1,2", "--price-per-hour", "2", "--batch", "4")
    done = run("bench", fp32[:12], int8, *options, *SHORT, "--json")
    assert done.code == 0, done.err
    found = done.document
    assert (found["schema"], found["valid"], found["attempts"]) == (1, None, 1)
    assert [engine["key"] for engine in found["engines"]] == [fp32, int8]
    for engine in found["engines"]:
        assert engine["batch_size"] == 4
        (timed,) = engine["latency"]
        assert timed["way"] == {
            "clock": "host",
            "transfers": True,
            "cuda_graph": False,
            "host_bound": False,
        }
        times = timed["latency_ms"]
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
        assert [each["rate"]["threads"] for each in engine["throughput"]] == [1, 2]
        for each in engine["throughput"]:
            speed = each["rate"]["inferences_per_s"]["value"]
            assert each["cost_per_million"] == pytest.approx(2e6 / 3600 / speed)
            assert each["rate"]["energy"] is None
            assert "processor" in each["rate"]["no_energy"]
            assert each["rate"]["graph_share"] == 0
            for name, (low, high) in each["rate"]["intervals"].items():
                assert low <= each["rate"][f"{name}_ms"] <= high
        assert "data.npz" in engine["data"]
    (comparison,) = found["comparisons"]
    assert comparison["baseline"] == found["engines"][0]["name"]
    assert "processor" in found["conditions"]["absent"]["reasons"]


def test_a_table_and_a_page_say_the_same(run: Run, keys: dict[str, str]) -> None:
    done = run("bench", keys["plain"], keys["int8"], *SHORT, "--markdown", "pages/bench.md")
    assert done.code == 0, done.err
    page = Path("pages/bench.md").read_text()
    for text in (
        "host clock",
        "Throughput",
        "drawn: normal values",
        "not compared",
        "data.npz",
    ):
        assert text in " ".join(done.out.split())
        assert text in page


def test_a_gate_on_the_speed_up_decides_the_exit_code(run: Run, keys: dict[str, str]) -> None:
    engines = keys["fp32"], keys["int8"]
    assert run("bench", *engines, *SHORT, "--min-speedup", "0.0001").code == 0
    done = run("bench", *engines, *SHORT, "--min-speedup", "1e6")
    assert done.code == 5
    assert "FAILED: min_speedup" in done.out
    assert "short of it by" in done.out
    alone = run("bench", engines[0], *SHORT, "--min-speedup", "1")
    assert (alone.code, alone.out) == (2, "")
    assert "nothing to compare" in alone.message


def test_inputs_come_from_where_the_user_says(run: Run, keys: dict[str, str]) -> None:
    engine = keys["int8"]
    np.savez("mine.npz", x=np.zeros((3, *models.IMAGE), np.float32))
    done = run("bench", engine, "--data", "mine.npz", "--batch", "2", *SHORT, "--json")
    assert done.code == 0, done.err
    (found,) = done.document["engines"]
    assert found["data"] == "data of mine.npz"
    assert found["inputs"] == {"x": [2, *models.IMAGE]}
    short = run("bench", engine, "--data", "mine.npz", "--shape", "x:2x3x8x8", *SHORT)
    assert (short.code, short.out) == (2, "")
    assert "no sample makes input 'x' of shape [2, 3, 8, 8]" in short.message
    bad = run("bench", engine, "--shape", "nobody:1x2", *SHORT)
    assert (bad.code, bad.out) == (2, "")
    assert "'nobody'" in bad.message
    assert run("bench", engine, "--shape", "x:1xx2", *SHORT).code == 2
    assert run("bench", engine, "--data", "gone.npz", *SHORT).code == 2
    for much in (("--batch", "99"), ("--shape", "x:99x3x16x16")):
        outside = run("bench", engine, *much, *SHORT)
        assert (outside.code, outside.out) == (2, "")
        assert "outside of its profile" in outside.message


def test_a_shape_that_the_data_lacks_is_drawn_and_said_to_be(run: Run, tmp_path: Path) -> None:
    """The recipe's samples are 12 long; somebody asks how fast 5 are."""
    models.save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": np.ones((4, 3), np.float32)},
        [models.floats("x", "n", "t", 4)],
        [models.floats("y", "n", "t", 3)],
    )
    np.savez(tmp_path / "d.npz", x=np.ones((6, 12, 4), np.float32))
    (tmp_path / "r.toml").write_text(
        '[source]\nonnx = "m.onnx"\n[quantization]\nprecision = "fp32"\nprovider = "d.npz"\n'
        '[build]\ntargets = ["onnxruntime"]\n'
        "[build.profiles.x]\nmin = [1, 1, 4]\nopt = [2, 12, 4]\nmax = [8, 20, 4]\n"
    )
    key = trtbuild.build(tmp_path / "r.toml", tmp_path / "store").engines[0].key
    for shape, sizes, origin in (("3x5x4", [3, 5, 4], "drawn"), ("3x12x4", [3, 12, 4], "data")):
        place = ("--store", tmp_path / "store")
        done = run("bench", key, "--shape", f"x:{shape}", *SHORT, *place, "--json")
        assert done.code == 0, done.err
        (found,) = done.document["engines"]
        assert found["inputs"] == {"x": sizes}
        assert found["data"].startswith(origin)


def test_a_gate_needs_engines_that_do_the_same_work(run: Run, keys: dict[str, str]) -> None:
    engines = keys["fp32"], keys["int8"], keys["plain"]
    done = run("bench", *engines, *SHORT, "--min-speedup", "0.0001")
    assert (done.code, done.out) == (2, "")
    assert f"classifier fp32 {keys['plain'][:12]} would be given x 3x3x16x16" in done.message
    assert run("bench", *engines, *SHORT, "--min-speedup", "0.0001", "--batch", "2").code == 0


def test_engines_are_called_by_model_precision_and_what_was_typed(
    run: Run, keys: dict[str, str]
) -> None:
    sha256 = run("cache", "show", keys["int8"], "--json").document["value"]["sha256"]
    done = run("bench", sha256[:20], keys["fp32"], *SHORT, "--json")
    assert done.code == 0, done.err
    names = [engine["name"] for engine in done.document["engines"]]
    assert names == [f"classifier int8 {sha256[:12]}", f"classifier fp32 {keys['fp32'][:12]}"]
    listed = [line.split() for line in run("cache", "ls").out.splitlines()]
    assert [keys["int8"][:12], sha256[:12], "classifier"] in [line[:3] for line in listed]
    twice = run("bench", sha256[:20], keys["int8"], *SHORT)
    assert (twice.code, twice.out) == (2, "")
    assert "named twice" in twice.message


def test_too_little_time_is_said_and_no_interval_is_below_0(
    run: Run, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = Interval(value=20, low=-30, high=70)
    monkeypatch.setattr(rates, "mean", lambda _values: apart)
    done = run("bench", keys["fp32"], *SHORT, "--markdown", "few.md", "--json")
    assert done.code == 0, done.err
    (found,) = done.document["engines"][0]["throughput"]
    assert found["rate"]["inferences_per_s"]["low"] == 0
    assert "say little of its throughput" in Path("few.md").read_text()


def test_every_option_that_is_a_float_refuses_what_is_no_number(run: Run) -> None:
    commands = dict(walk(typer.main.get_group(app), ()))
    options = [
        (path, option)
        for path, command in commands.items()
        for option in command.params
        if option.type.name.startswith("float")
    ]
    assert len(options) >= 9
    for path, option in options:
        for value in ("nan", "inf", "-inf"):
            given = [f"{option.opts[0]}={value}"]
            needed = ["x"] if any(p.required for p in commands[path].params) else []
            done = run(*path, *needed, *given)
            assert (done.code, done.out) == (2, ""), (path, option.opts, value)
            assert f"Invalid value for '{option.opts[0]}'" in done.err


def walk(
    command: TyperCommand | TyperGroup, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], TyperCommand | TyperGroup]]:
    yield path, command
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, (*path, name))


def test_what_cannot_be_measured_is_refused_before_any_work(
    run: Run, keys: dict[str, str]
) -> None:
    engine = keys["int8"]
    foreign = put_engine(Store.open(""), engine_key("sm_89", 3), b"bytes").key
    cases = {
        ("beefbeef",): (2, "names nothing"),
        (engine, engine[:10]): (2, "named twice"),
        (foreign,): (3, "driver on this machine"),
        (engine, foreign): (3, "tensorrt-rtx:sm_89"),
        (engine, "--threads", "1,0"): (2, "--threads 1,0"),
        (engine, "--threads", "two"): (2, "expected numbers"),
        (engine, "--no-cuda-graphs"): (2, "none is named"),
        (engine, "--allow-host-code"): (2, "none is named"),
    }
    for arguments, (code, text) in cases.items():
        done = run("bench", *arguments, *SHORT)
        assert (done.code, done.out) == (code, ""), arguments
        assert text in done.message
