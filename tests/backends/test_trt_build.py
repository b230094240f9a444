"""The parts of TensorRT's build that need no GPU: settings, types, log, times, messages."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import onnx
import pytest

from tests.backends import building, graphs
from trtbuild.backends import (
    distributions,
    gpu,
    tensorrt,
    tensorrt_rtx,
    trt_precision,
    trt_preflight,
    trt_repeats,
    trt_session,
    trt_settings,
)
from trtbuild.backends.isolation import build_isolated
from trtbuild.backends.trt_log import Messages, Refusal
from trtbuild.backends.trt_progress import Phases
from trtbuild.backends.trt_timing import TimingCache, merge
from trtbuild.engine import Precision, Target
from trtbuild.errors import BuildError, MissingBackendError
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import Setting

ADA = building.rtx("sm_89")
LIMITS = Limits(build_seconds=120)


@pytest.mark.rtx
def test_every_setting_of_rtx_that_needs_no_gpu_is_taken_together(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    chosen: dict[str, Setting] = {
        "avg_timing_iterations": 2,
        "direct_io": True,
        "distributive_independence": True,
        "l2_limit_kib": 2048,
        "max_aux_streams": 1,
        "max_num_tactics": 4,
        "optimization_level": 4,
        "sparse_weights": True,
        "strict_nans": True,
        "tiling_optimization_level": "fast",
        "weight_streaming": True,
        "workspace_mib": 512,
    }
    rest = set(tensorrt_rtx.OPTIONS) - set(chosen)
    assert rest == {"refit", "refit_identical", "refit_individual", "strip_plan"}
    wish = building.request(graph, ADA, tmp_path / "engine", **chosen)
    told: list[str] = []
    assert build_isolated(wish, LIMITS, told.append).layers.precision_achieved == {"fp32": 3}


@pytest.mark.rtx
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"refit": True}, "built on a machine with a GPU"),
        ({"refit_individual": "nothing"}, "did not take refittable weights 'nothing'"),
        ({"max_aux_streams": -7}, "did not take max_aux_streams"),
    ],
)
def test_a_setting_without_effect_is_refused(
    settings: dict[str, Setting], words: str, tmp_path: Path
) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    wish = building.request(graph, ADA, tmp_path / "engine", **settings)
    with pytest.raises(BuildError) as caught:
        build_isolated(wish, LIMITS)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hardware_compatible": "all"}, "expected one of none, ampere_plus"),
        ({"refit": True, "refit_identical": True}, "exclude each other"),
        ({"strip_plan": True}, "set refit too"),
        ({"exclude_lean_runtime": True}, "needs version_compatible"),
        ({"gpu_fallback": True}, "set dla_core too"),
        ({"dla_managed_sram_kib": 1024}, "set dla_core too"),
        ({"dla_core": 0, "dla_local_dram_mib": 1000}, "expected a power of 2"),
        ({"dla_core": 0, "dla_local_dram_mib": 1024}, ""),
        ({"build_repeats": 0}, "expected a number from 1 to"),
        ({"build_repeats": 2, "timing_cache": "pinned"}, "a pinned timing_cache forbids that"),
        ({"build_repeats": 2, "timing_cache": "pinned:abc"}, "leave one"),
        ({"build_repeats": 2, "runtime_platform": "windows_amd64"}, "cannot measure here"),
        ({"build_repeats": 2, "version_compatible": True}, ""),
        ({"build_repeats": 1, "timing_cache": "pinned"}, ""),
        ({"optimization_level": 9}, "optimization_level = 9: expected a number from 0 to 5"),
        ({"optimization_level": -1}, "from 0 to 5"),
        ({"workspace_mib": -5}, "workspace_mib = -5: expected a number from 1"),
        ({"workspace_mib": 0}, "from 1"),
        ({"workspace_mib": 1 << 43}, "workspace_mib"),
        ({"l2_limit_kib": 99999999999999999999}, "l2_limit_kib"),
        ({"max_aux_streams": -7}, "max_aux_streams = -7: expected a number from -1"),
        ({"max_num_tactics": 1 << 31}, "max_num_tactics"),
        ({"strip_plan": True, "refit": True}, ""),
        ({}, ""),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, Setting], words: str) -> None:
    found = trt_settings.problem(settings)
    assert words in found
    assert bool(found) == bool(words)


def test_libraries_are_keyed_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"one")
    (tmp_path / "b.so").write_bytes(b"two")
    files = trt_settings.libraries("a.so:b.so", tmp_path)
    before = trt_settings.digests(files)
    assert before.split(",")[0] == hashlib.sha256(b"one").hexdigest()
    (tmp_path / "b.so").write_bytes(b"new")
    assert trt_settings.digests(files) != before


def test_layers_of_an_old_version_obey_the_types_of_the_graph(tmp_path: Path) -> None:
    draw = graphs.Drawing()
    relu = draw.node("Relu", ["x"], "relu")
    graph = draw.save(tmp_path / "m.onnx", draw.conv(relu, "c"), graphs.IMAGE)
    model = onnx.load(graph.path)
    assert trt_precision.types_of_nodes(model) == {"relu": "FLOAT", "c": "FLOAT"}
    assert trt_precision.flags_of(model) == ("OBEY_PRECISION_CONSTRAINTS",)


def test_half_and_float_are_told_apart_and_casts_left_alone() -> None:
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="wide"),
        onnx.helper.make_node("Cast", ["a"], ["b"], name="cast", to=onnx.TensorProto.FLOAT16),
        onnx.helper.make_node("Relu", ["b"], ["c"], name="narrow"),
        onnx.helper.make_node("Shape", ["c"], ["s"], name="shape"),
    ]
    model = _model(nodes, ("x", onnx.TensorProto.FLOAT), ("c", onnx.TensorProto.FLOAT16))
    assert trt_precision.types_of_nodes(model) == {"wide": "FLOAT", "narrow": "HALF"}
    assert trt_precision.flags_of(model) == ("FP16", "OBEY_PRECISION_CONSTRAINTS")


def test_what_stands_at_quantizers_has_their_type(tmp_path: Path) -> None:
    draw = graphs.Drawing(tensorrt.SCHEME)
    product = draw.conv(draw.activation("x"), "product")
    graph = draw.save(tmp_path / "m.onnx", draw.node("Relu", [product], "relu"), graphs.IMAGE)
    model = onnx.load(graph.path)
    assert trt_precision.types_of_nodes(model) == {"relu": "FLOAT"}
    assert trt_precision.flags_of(model) == ("INT8", "OBEY_PRECISION_CONSTRAINTS")


def test_scales_that_an_old_version_misreads_are_named() -> None:
    def model(kind: int) -> onnx.ModelProto:
        scale = onnx.helper.make_tensor("s", kind, [], [0.5])
        nodes = [
            onnx.helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="quantize"),
            onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="back"),
        ]
        made = _model(nodes, ("x", kind), ("y", kind))
        made.graph.initializer.append(scale)
        return made

    assert trt_precision.unreadable_scale(model(onnx.TensorProto.FLOAT16)) == "quantize"
    assert trt_precision.unreadable_scale(model(onnx.TensorProto.FLOAT)) == ""


@pytest.mark.parametrize(
    ("version", "rest"), [("8.6.1", "fp32"), ("10.13.0", "fp16"), ("", "fp16")]
)
def test_an_old_version_gets_scales_that_it_can_read(
    version: str, rest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions, "version", lambda _: version)
    assert tensorrt.rest() == rest


def test_types_that_an_old_version_lacks_are_named() -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")]
    model = _model(nodes, ("x", onnx.TensorProto.BFLOAT16), ("y", onnx.TensorProto.BFLOAT16))
    assert trt_precision.lacking(model, ["FP16", "INT8", "FP8"]) == ("BF16",)
    assert trt_precision.lacking(model, ["FP16", "BF16"]) == ()


def _model(
    nodes: list[onnx.NodeProto], source: tuple[str, int], result: tuple[str, int]
) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info(*source, [4])],
        [onnx.helper.make_tensor_value_info(*result, [4])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_skipped_tactics_become_one_finding_with_advice() -> None:
    messages = Messages()
    messages.take(
        "WARNING",
        "Tactic Device request: 5123MB Available: 2048MB. Device memory is insufficient to use "
        "tactic.",
    )
    messages.take(
        "WARNING",
        "[UNSUPPORTED_STATE]Skipping tactic 3 due to insufficient memory on requested size of "
        "5371854848 detected for tactic 0x0000000000000004.",
    )
    messages.take("VERBOSE", "Skipping tactic 0x1 due to exception invalid argument")
    first, second = messages.degraded.findings()
    assert "2 times (the largest wanted 5123 MiB)" in first
    assert "workspace_mib" in first
    assert "1 tactics failed" in second
    assert messages.warnings == []
    messages.take("WARNING", "something else")
    assert messages.warnings == ["something else"]


def test_an_operator_that_is_not_known_can_be_a_plugin_of_tensorrt(tmp_path: Path) -> None:
    refusal = Refusal(tmp_path / "m.onnx", "TensorRT 10.13 for sm_89", Messages())
    text = "Plugin not found, are the plugin name, version, and namespace correct?"
    assert "name a --plugin" in str(refusal.error("cannot parse the model", [text]))


def test_a_missing_implementation_says_what_was_skipped_before(tmp_path: Path) -> None:
    messages = Messages()
    messages.take("WARNING", "Skipping tactic 3 due to insufficient memory on requested size")
    refusal = Refusal(tmp_path / "m.onnx", "TensorRT 10.13 for sm_89", messages)
    text = "Could not find any implementation for node conv1."
    error = str(refusal.error("cannot build the model", [text]))
    assert "conv1" in error
    assert "degraded build" in error
    assert "raise the build option workspace_mib" in error
    with pytest.raises(MemoryError):
        refusal.error("cannot build the model", ["std::bad_alloc"])


def test_a_timing_cache_loses_nothing_while_many_write_it(tmp_path: Path) -> None:
    path = tmp_path / "cache"

    def combine(kept: bytes, more: bytes) -> bytes:
        return b"".join(
            sorted({*kept.splitlines(keepends=True), *more.splitlines(keepends=True)})
        )

    def add(index: int) -> str:
        return merge(path, b"tactic %03d\n" % index, combine)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(add, range(64))) == {""}
    assert len(path.read_bytes().splitlines()) == 64
    before = path.read_bytes()
    assert merge(path, b"short", lambda _, more: more) == ""
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} <= {"cache", "cache.lock"}


class _Caches:
    """A configuration whose caches are refused where they begin with "old"."""

    def __init__(self) -> None:
        self.asked = 0

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content.startswith(b"old") else content

    def set_timing_cache(self, _cache: bytes | None, _ignore: bool) -> bool:  # noqa: FBT001  TensorRT's
        return True

    def get_timing_cache(self) -> SimpleNamespace:
        self.asked += 1
        return SimpleNamespace(serialize=lambda: b"new")


def _timed(path: Path, mode: str, config: _Caches, *, meanwhile: bytes = b"") -> Messages:
    """Build with a cache of this mode, while another build leaves its own."""
    messages = Messages()
    refusal = Refusal(path, "TensorRT 11.4 for sm_90", messages)
    cache = TimingCache(mode, path, refusal)
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(__members__={}))
    settings: Any = SimpleNamespace(flag=lambda *_, **__: None)
    cache.load(trt, config, settings)
    if meanwhile:
        path.write_bytes(meanwhile)
    cache.save(config)
    return messages


def test_a_refused_timing_cache_is_replaced_though_it_was_larger(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    path.write_bytes(b"old " * 100)
    messages = _timed(path, "auto", _Caches())
    assert "refused and is made anew" in messages.warnings[0]
    assert path.read_bytes() == b"new"
    path.write_bytes(b"old " * 100)
    _timed(path, "auto", _Caches(), meanwhile=b"old and longer " * 100)
    assert path.read_bytes() == b"old and longer " * 100, "nobody has refused that one"


def test_a_build_without_a_timing_cache_does_not_ask_for_one(tmp_path: Path) -> None:
    config = _Caches()
    _timed(tmp_path / "cache", "off", config)
    assert config.asked == 0
    _timed(tmp_path / "cache", "auto", config)
    assert config.asked == 1


def test_a_timing_cache_that_cannot_be_written_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed = merge(tmp_path / "file" / "cache", b"x", lambda kept, more: kept + more)
    assert "was not extended" in failed


def test_phases_tell_how_far_a_build_is() -> None:
    phases = Phases()
    phases.start("Building engine", 6)
    phases.step("Building engine", 1)
    phases.start("Timing tactics", 40)
    phases.step("Timing tactics", 11)
    assert str(phases) == "Building engine 2/6, Timing tactics 12/40"
    phases.finish("Timing tactics")
    assert str(phases) == "Building engine 2/6"


def test_of_several_engines_the_least_median_wins() -> None:
    assert trt_repeats.fastest([[3.0, 1.0, 3.0], [2.0, 2.0, 9.0], [2.0, 2.0, 2.0]]) == 1


def test_repeats_are_refused_before_they_are_built_where_nothing_measures_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target(backend="tensorrt", arch="sm_90", os="linux-x86_64")
    monkeypatch.setattr(trt_session, "lacks", lambda *_: "pip install 'x'")
    with pytest.raises(MissingBackendError, match=r"build_repeats measures.*pip install 'x'"):
        trt_repeats.require(target)
    monkeypatch.setattr(trt_session, "lacks", lambda *_: "")
    trt_repeats.require(target)


def test_without_tensorrt_or_a_gpu_the_reason_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if gpu.archs():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("trtbuild.backends.fingerprint.has_module", lambda _: False)
    (found,) = tensorrt.targets(("sm_90",))
    missing = "TensorRT is not installed: pip install 'trtbuild[tensorrt]'. Then it needs a GPU"
    assert found.cannot_build.startswith(missing)
    monkeypatch.setattr("trtbuild.backends.fingerprint.has_module", lambda _: True)
    (found,) = tensorrt.targets(())
    assert "there is none" in found.cannot_build
    assert gpu.why_none() in found.cannot_build


@pytest.mark.parametrize(
    ("driver", "library", "words"),
    [
        ((12, 4), "tensorrt_cu13_libs", "needs 13.0: install driver 580 or newer; or pip"),
        ((11, 8), "tensorrt_cu12_libs", "needs 12.0: install driver 535 or newer"),
        ((13, 0), "tensorrt_cu13_libs", ""),
        ((12, 4), "tensorrt_libs", ""),
    ],
)
def test_an_old_driver_is_named_with_the_one_to_install(
    driver: tuple[int, int], library: str, words: str
) -> None:
    found = tensorrt._old_driver(driver, library)  # noqa: SLF001  needs no driver this way
    assert words in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("arch", "precision", "can"),
    [
        ("sm_75", "bf16", False),
        ("sm_80", "bf16", True),
        ("sm_86", "fp8", False),
        ("sm_90", "fp8", True),
        ("sm_90", "nvfp4", False),
        ("sm_100", "nvfp4", True),
    ],
)
def test_formats_come_with_architectures(arch: str, precision: str, *, can: bool) -> None:
    named = msgspec.convert(precision, type=Precision)
    assert (tensorrt.cannot_compute(arch, named) == "") == can


def test_weights_larger_than_the_gpu_are_refused(tmp_path: Path) -> None:
    graph = graphs.residual(tmp_path / "m.onnx", None)
    target = Target(backend="tensorrt", arch="sm_90", os="linux-x86_64")
    trt_preflight.check_memory(graph, target, 1 << 30)
    trt_preflight.check_memory(graph, target, 0)
    with pytest.raises(BuildError, match="build on a larger GPU"):
        trt_preflight.check_memory(graph, target, 100)
