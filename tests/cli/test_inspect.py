from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.backends import building, graphs
from tests.farm.recipes import make_folder, trtbuild
from trtbuild.backends import processor
from trtbuild.cli.engine_view import engine_sections
from trtbuild.engine import Manifest
from trtbuild.store import Store, make_record

HERE = f"onnxruntime:{processor.arch()}"

MIXED = """\
[source]
onnx = "model.onnx"
[quantization]
precision = "int8"
provider = "provider.py"
method = "minmax"
keep_float = ["first"]
[build]
targets = ["onnxruntime"]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with one engine, of which a compute layer was kept in float."""
    top = tmp_path_factory.mktemp("inspect")
    folder = make_folder(top, {"mixed": MIXED})
    done = trtbuild("engine", folder / "mixed.toml", "--store", top / "store", "--json")
    assert done.returncode in (0, 5), done.stderr
    (top / "engine.json").write_text(done.stdout)
    return top / "store"


def reported(store: Path) -> Any:  # noqa: ANN401  decoded JSON
    (engine,) = json.loads((store.parent / "engine.json").read_text())["engines"]
    return engine


def document(name: str | Path, store: Path) -> Any:  # noqa: ANN401  decoded JSON
    done = trtbuild("inspect", name, "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def text(name: str | Path, store: Path, *options: str) -> str:
    done = trtbuild("inspect", name, "--store", store, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_an_engine_is_found_by_digest_key_prefix_and_path(store: Path, tmp_path: Path) -> None:
    engine = reported(store)
    copy = tmp_path / "copy.engine"
    copy.write_bytes(Path(engine["path"]).read_bytes())
    found = document(engine["sha256"], store)
    assert found["kind"] == "engine"
    assert {name: value for name, value in found.items() if name in engine} == {
        name: value for name, value in engine.items() if name in found
    }
    assert {"key", "precision_achieved", "int8_mac_share", "fused_layers"} <= set(found)
    for name in (engine["key"], engine["key"][:9], copy):
        assert document(name, store) == found


def test_an_engine_shows_signature_profiles_and_all_its_layers_as_json(store: Path) -> None:
    found = document(reported(store)["key"], store)
    assert [(each["name"], each["shape"]) for each in found["inputs"]] == [("x", ["batch", 16])]
    assert [(each["name"], each["dtype"]) for each in found["outputs"]] == [("y", "float32")]
    ((profile,),) = found["profiles"]
    assert (profile["input"], profile["min"]) == ("x", [1, 16])
    precisions = {
        node: layer["precision"]
        for layer in found["layers"]
        for node in layer["nodes"]
        if layer["compute"]
    }
    assert (precisions["first"], precisions["second"]) == ("fp32", "int8")


def test_only_compute_layers_that_fell_short_are_listed_unless_all_are_asked_for(
    store: Path,
) -> None:
    key = reported(store)["key"]
    count = len(document(key, store)["layers"])
    table = text(key, store).partition("Compute layers that are not in int8")[2]
    assert " fp32 " in table
    assert " int8 " not in table.partition("compute layers are in")[0]
    assert "1 of 2 compute layers are in int8" in table
    assert f"--layers lists all {count}" in table
    assert "1 of the others run in what the network asks for" in table
    everything = text(key, store, "--layers").partition("Layers\n")[2]
    assert "second" in everything
    assert " int8 " in everything
    assert "--layers" not in everything


def test_an_engine_whose_bytes_changed_is_not_shown_as_verified(
    store: Path, tmp_path: Path
) -> None:
    engine = reported(store)
    other = tmp_path / "store"
    folder = store.parent / "engines"
    done = trtbuild("engine", folder / "mixed.toml", "--store", other, "--json")
    assert done.returncode in (0, 5)
    assert f"{engine['sha256']} (verified)" in text(engine["key"], store)
    (built,) = json.loads(done.stdout)["engines"]
    path = Path(built["path"])
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = trtbuild("inspect", built["key"], "--store", other)
    assert (damaged.returncode, damaged.stdout) == (6, "")
    assert "set aside in quarantine" in damaged.stderr
    assert "'trtbuild engine' with the same model or recipe" in damaged.stderr
    assert f"It was built of 'mixed' in {store.parent}" in damaged.stderr


def test_engines_that_came_out_as_the_same_bytes_name_each_other(
    store: Path, tmp_path: Path
) -> None:
    engine, twin = reported(store), "7" * 64
    other = Store.open(str(tmp_path / "store"))
    record = Store.open(str(store)).get("engine", engine["key"], Manifest)
    assert record is not None
    manifest = record.read(Manifest)
    plan = other.put_file("plan", Path(engine["path"]))
    for key in (engine["key"], twin):
        named = msgspec.structs.replace(manifest, key=key)
        other.put(make_record("engine", key, named.preimage, named, (plan,)))
    shown = text(twin, other.root)
    assert "Other engines that came out as the same bytes" in shown
    assert engine["key"] in shown.partition("Other engines")[2]
    assert document(engine["key"], other.root)["same_bytes_as"] == [twin]
    assert "Other engines" not in text(engine["key"], store)


def test_fused_layers_are_counted_of_those_that_are_listed(store: Path) -> None:
    record = Store.open(str(store)).get("engine", reported(store)["key"], Manifest)
    assert record is not None
    manifest = record.read(Manifest)
    idle = msgspec.structs.replace(manifest.layers.layers[0], precision="none", nodes=())
    layers = msgspec.structs.replace(manifest.layers, layers=(*manifest.layers.layers, idle))
    with_idle = msgspec.structs.replace(manifest, layers=layers)
    rows = engine_sections("p", with_idle, all_layers=False)[0].rows
    (fused,) = [row[1] for row in rows if row[0] == "fused layers"]
    assert f" of {len(manifest.layers.layers)} do the work" in fused
    notes = " ".join(engine_sections("p", with_idle, all_layers=False)[-1].notes)
    others = len(manifest.layers.layers) - sum(each.compute for each in layers.layers)
    assert f"{others} other layers compute no products 1 more only wait" in notes


def cut_short(name: Path, store: Path, *options: str) -> str:
    done = trtbuild("inspect", name, "--store", store, *options)
    assert (done.returncode, done.stderr) == (6, "")
    return done.stdout


@pytest.mark.rtx
def test_a_plan_file_shows_its_header_and_whether_it_is_whole(tmp_path: Path) -> None:
    graph = graphs.chain(tmp_path / "chain.onnx", ["conv", "relu"])
    plan, cut = tmp_path / "chain.engine", tmp_path / "cut.engine"
    building.build(graph, building.rtx("sm_89"), plan)
    cut.write_bytes(plan.read_bytes()[:300])
    none = tmp_path / "none"
    found = document(plan, none)
    assert (found["kind"], found["whole"]) == ("plan", True)
    assert found["header"]["archs"] == ["sm_89"]
    assert found["header"]["version"].startswith("1.")
    assert found["bytes"] == found["header"]["bytes"] == plan.stat().st_size
    assert "sm_89" in text(plan, none)
    assert not json.loads(cut_short(cut, none, "--json"))["whole"]
    assert f"says {plan.stat().st_size} bytes, it has 300" in cut_short(cut, none)
    assert not none.exists()


def tensorrt_plan(size: int, version: tuple[int, ...] = (10, 13, 0, 35)) -> bytes:
    """Return a file with the header of TensorRT, as trt_plan's docstring cites it."""
    head = struct.pack("<4sIIIQ4B", b"ftrt", 0, 0xF0, 0, size, *version)
    return head + bytes(size - len(head))


def test_a_plan_of_tensorrt_shows_its_version_and_what_its_header_does_not_tell(
    tmp_path: Path,
) -> None:
    plan, cut, old = (tmp_path / f"{name}.plan" for name in ("whole", "cut", "old"))
    plan.write_bytes(tensorrt_plan(400))
    cut.write_bytes(tensorrt_plan(400)[:300])
    old.write_bytes(tensorrt_plan(400, (0, 0, 0, 0)))
    found = document(plan, tmp_path / "none")
    assert (found["header"]["library"], found["header"]["version"]) == (
        "tensorrt",
        "10.13.0.35",
    )
    assert (found["whole"], found["offset"], found["header"]["archs"]) == (True, 0, [])
    shown = text(plan, tmp_path / "none")
    assert "TensorRT engine, not of this store" in shown
    assert "not told by the header: the GPU that it was built on" in shown
    assert "DAMAGED: its header says 400 bytes, it has 300" in cut_short(cut, tmp_path / "none")
    assert "older than those that tell it" in text(old, tmp_path / "none")


def test_a_plan_behind_the_metadata_of_ultralytics_is_found(tmp_path: Path) -> None:
    plan = tmp_path / "yolo.engine"
    front = json.dumps({"task": "detect", "imgsz": [640, 640]}).encode()
    plan.write_bytes(len(front).to_bytes(4, "little") + front + tensorrt_plan(400))
    found = document(plan, tmp_path / "none")
    assert (found["whole"], found["offset"]) == (True, 4 + len(front))
    shown = text(plan, tmp_path / "none")
    assert f"{4 + len(front)} bytes that are not TensorRT's" in shown
    assert "task, imgsz" in shown


def test_times_of_layers_are_measured_here_and_the_slowest_stand_first(store: Path) -> None:
    key = reported(store)["key"]
    done = trtbuild("inspect", key, "--store", store, "--json", "--times")
    assert done.returncode == 0, done.stderr
    times = [layer["milliseconds"] for layer in json.loads(done.stdout)["layers"]]
    assert all(isinstance(each, float) and each >= 0 for each in times)
    assert any(each > 0 for each in times)
    shown = text(key, store, "--times", "--layers").partition("the slowest first")[2]
    rows = shown.partition("compute layers are in")[0].splitlines()
    cells = [line.split() for line in rows if " % " in line]
    assert [float(each[0]) for each in cells] == sorted(float(e[0]) for e in cells)[::-1]
    assert len(cells) == len(times)
    assert "by kind: " in shown
    assert all(layer["milliseconds"] is None for layer in document(key, store)["layers"])


def test_times_of_what_does_not_run_here_say_where_to_measure(
    store: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "x.plan"
    plan.write_bytes(tensorrt_plan(400))
    refused = trtbuild("inspect", plan, "--store", store, "--times")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "trtbuild engine" in refused.stderr
    opened = Store.open(str(store))
    here = opened.get("engine", reported(store)["key"])
    assert here is not None
    manifest = here.read(Manifest)
    target = msgspec.structs.replace(manifest.preimage.target, arch="x86_64-other")
    preimage = msgspec.structs.replace(manifest.preimage, target=target)
    moved = msgspec.structs.replace(manifest, key=preimage.digest, preimage=preimage)
    opened.put(make_record("engine", preimage.digest, preimage, moved, here.blobs))
    elsewhere = trtbuild("inspect", preimage.digest, "--store", store, "--times")
    assert (elsewhere.returncode, elsewhere.stdout) == (3, "")
    assert "--times: the engine is for onnxruntime:x86_64-other" in elsewhere.stderr


def test_an_onnx_file_shows_signature_operators_and_parameters(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    inner = helper.make_graph(
        [helper.make_node("Relu", ["p"], ["r"])],
        "inner",
        [],
        [helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["p"], ["n"])],
        "other",
        [],
        [helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["p"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other),
        helper.make_node("FusedMatMul", ["p", "w"], ["z"], domain="com.microsoft"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []),
    ]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "yz"
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, [weight]),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    found = document(path, tmp_path / "none")
    assert found["kind"] == "onnx"
    assert next(iter(found["operators"].items())) == ("MatMul", 2)
    assert found["operators"] == {
        "MatMul": 2,
        "If": 1,
        "Neg": 1,
        "Relu": 1,
        "com.microsoft.FusedMatMul": 1,
    }
    assert (found["parameters"], found["weights_bytes"]) == (16, 64)
    assert found["opsets"] == {"ai.onnx": 21, "com.microsoft": 1}
    assert [(each["name"], each["dtype"]) for each in found["inputs"]] == [
        ("x", "float32"),
        ("flag", "bool"),
    ]
    shown = text(path, tmp_path / "none")
    for line in ("[batch, 4]", "com.microsoft.FusedMatMul", "ai.onnx 21, com.microsoft 1"):
        assert line in shown


def test_what_is_no_engine_is_one_line_and_exit_code_2(store: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no engine\n")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "short.engine").write_bytes(b"vtrt")
    (tmp_path / "short.plan").write_bytes(b"ftrt" + bytes(20))
    names = ["nothing-like-it", str(tmp_path), *map(str, sorted(tmp_path.iterdir()))]
    for name in names:
        done = trtbuild("inspect", name, "--store", store)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: ")
        assert name in done.stderr
