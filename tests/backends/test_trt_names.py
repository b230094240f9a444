"""Every TensorRT name that the adapter uses exists; every setting of TensorRT is considered.

``data/trt_names.json`` holds, by class, the members that the bindings of 8.6.0, 10.13 (stubs,
which list no inherited members), 11.4 and TensorRT-RTX 1.7 have.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trtbuild import backends
from trtbuild.backends import trt_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSIONS = ("8.6.0", "10.13", "11.4", "rtx-1.7")
NAMES: dict[str, dict[str, str]] = json.loads(
    Path(__file__).with_name("data").joinpath("trt_names.json").read_text()
)
WHERE = {
    (kind, member): frozenset(versions.split())
    for kind, groups in NAMES.items()
    for versions, members in groups.items()
    for member in members.split()
}
MODULES = sorted(Path(backends.__file__).parent.glob("*trt*.py"))
RECEIVERS = {
    "_builder": "Builder",
    "_config": "IBuilderConfig",
    "config": "IBuilderConfig",  # or IRuntimeConfig
    "_network": "INetworkDefinition",
    "network": "INetworkDefinition",
    "layer": "ILayer",
    "parser": "OnnxParser",
    "refitter": "Refitter",
    "giver": "OnnxParserRefitter",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "loaded": "ICudaEngine",
    "inspector": "EngineInspector",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "both": "ITimingCache",
}
"""What our variables hold; names of trt's own classes and enumerations need no entry."""

RECEIVERS_IN = {
    "_trt": {"error": "ParserError", "tensor": "ITensor"},
    "trt_context": {"_context": "IExecutionContext", "context": "IExecutionContext"},
    "trt_engine": {"_engine": "ICudaEngine", "context": "IExecutionContext"},
    "trt_inspector": {"engine": "ICudaEngine", "context": "IExecutionContext"},
    "trt_profile": {"context": "IExecutionContext"},
    "trt_refit": {"config": "ISerializationConfig"},
    "trt_times": {"_context": "IExecutionContext"},
}
"""What they hold in some modules, and something of ours in others."""

DETECTED = {
    "precision": "weakly typed versions only, see trt_precision.is_typed",
    "set_output_type": "weakly typed versions only",
    "get_output_type": "weakly typed versions only",
    "set_compute_capability": "after hasattr(num_compute_capabilities)",
    "get_compute_capability": "after hasattr(num_compute_capabilities)",
    "ComputeCapability": "after hasattr(num_compute_capabilities)",
    "mark_weights_refittable": "after the flag REFIT_INDIVIDUAL, which came with it",
    "are_weights_marked_refittable": "after the flag REFIT_INDIVIDUAL",
    "get_named_weights": "after hasattr(OnnxParserRefitter), which came with it",
    "create_serialization_config": "after hasattr(SerializationFlag)",
    "serialize_with_config": "after hasattr(SerializationFlag)",
    "ISerializationConfig": "after hasattr(SerializationFlag), which came with it",
    "create_runtime_config": "after hasattr(create_runtime_cache): RTX alone",
    "create_execution_context_without_device_memory": (
        "where ExecutionContextAllocationStrategy is not"
    ),
    "device_memory": "where set_device_memory is not",
    "device_memory_size": "where device_memory_size_v2 is not",
    "node_operator": "after hasattr(node_name), which came with it",
    "get_weight_streaming_automatic_budget": "where streamable_weights_size is not 0",
    "weight_streaming_budget_v2": "where streamable_weights_size is not 0",
    "progress_monitor": "where IProgressMonitor is",
}


def uses(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (class, member) of every access to an object of TensorRT in a module."""
    receivers = RECEIVERS | RECEIVERS_IN.get(path.stem, {})
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        base = node.value
        name = (
            base.id
            if isinstance(base, ast.Name)
            else base.attr
            if isinstance(base, ast.Attribute)
            else ""
        )
        if name in {"trt", "_trt"}:
            yield "module", node.attr
        elif (
            name in NAMES and isinstance(base, ast.Attribute) and "trt" in ast.dump(base.value)
        ):
            yield name, node.attr
        elif name in receivers:
            kind = receivers[name]
            other = "IRuntimeConfig" if (kind, node.attr) not in WHERE else kind
            yield (other if name == "config" else kind), node.attr


def guards(tree: ast.AST) -> set[str]:
    """Return the names that a module asks for before it uses them."""
    asked = [
        node.args[1]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"hasattr", "getattr"}
    ]
    compared = [node.left for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    return {
        node.value
        for node in (*asked, *compared)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_name_that_a_version_lacks_is_only_used_where_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    known = guards(tree) | set(DETECTED)
    for kind, member in uses(path):
        if (kind, member) == ("module", "__version__"):
            continue
        versions = WHERE.get((kind, member), frozenset())
        assert versions, f"{path.name}: no TensorRT has {kind}.{member}"
        missing = set(VERSIONS) - versions
        assert not missing or member in known or kind in known, (
            f"{path.name}: {kind}.{member} is missing in {sorted(missing)}: ask for it first"
        )


def test_the_adapter_is_seen_to_use_tensorrt() -> None:
    found = {use for path in MODULES for use in uses(path)}
    assert ("Builder", "build_serialized_network") in found
    assert ("module", "OnnxParser") in found
    assert ("ProfilingVerbosity", "DETAILED") in found
    assert {
        ("ICudaEngine", "weight_streaming_budget_v2"),
        ("IExecutionContext", "execute_async_v3"),
        ("IOptimizationProfile", "set_shape"),
        ("ISerializationConfig", "get_flag"),
        ("ITensor", "dtype"),
        ("ITimingCache", "combine"),
        ("ParserError", "node_name"),
    } <= found


def test_every_builder_flag_is_a_setting_or_has_a_reason() -> None:
    ours = {*trt_settings.FLAGS.values(), *trt_settings.OTHER_FLAGS}
    theirs = {member for kind, member in WHERE if kind == "BuilderFlag"}
    assert theirs == ours


def test_every_property_of_a_configuration_is_a_setting_or_has_a_reason() -> None:
    theirs = {member for kind, member in WHERE if kind == "IBuilderConfig"}
    assert theirs == _configured()


@pytest.mark.rtx
def test_the_installed_tensorrt_rtx_has_nothing_that_is_not_considered() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    members = {name for name in dir(trt.IBuilderConfig) if not name.startswith("_")}
    assert members <= _configured()
    flags = set(trt.BuilderFlag.__members__)
    assert flags <= {*trt_settings.FLAGS.values(), *trt_settings.OTHER_FLAGS}


def _configured() -> set[str]:
    return {
        *(attribute for attribute, _ in trt_settings.NUMBERS.values()),
        *(attribute for attribute, _ in trt_settings.WORDS.values()),
        *trt_settings.TEXTS.values(),
        *trt_settings.OTHER_MEMBERS,
    }


def test_every_setting_is_applied_somewhere() -> None:
    applied = {
        *trt_settings.FLAGS,
        *trt_settings.NUMBERS,
        *trt_settings.POOLS,
        *trt_settings.TEXTS,
        *trt_settings.WORDS,
    }
    by_modules = {"build_repeats", "dla_core", "plugins", "refit_individual", "timing_cache"}
    assert set(trt_settings.OPTIONS) == {*applied, *by_modules}
    pools = {member for kind, member in WHERE if kind == "MemoryPoolType"}
    assert {pool for pool, _ in trt_settings.POOLS.values()} <= pools
    text = "".join(path.read_text() for path in MODULES if path.stem != "trt_settings")
    assert all(f'"{name}"' in text for name in by_modules)
    assert set(trt_settings.CHOICES) == set(trt_settings.WORDS)
