"""K1: every flag of a parser and of a network, preview feature and memory pool is considered.

``NAMES`` are the members that the bindings of 8.6.0, 10.13, 11.4 and TensorRT-RTX 1.7 have.
What is not keyed must be left at the library's default, whose version is in the key.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trtbuild import backends
from trtbuild.backends import trt_precision

MODULES = sorted(Path(backends.__file__).parent.glob("*trt*.py"))

DEFAULT = "left at the library's default, whose version and build are in the key"
DLA = "of the deep learning accelerator; left at the default, dla_core is keyed"

KEYED = {
    "MemoryPoolType": {
        "DLA_GLOBAL_DRAM": "dla_global_dram_mib",
        "DLA_LOCAL_DRAM": "dla_local_dram_mib",
        "DLA_MANAGED_SRAM": "dla_managed_sram_kib",
        "WORKSPACE": "workspace_mib",
    },
    "NetworkDefinitionCreationFlag": {
        "STRONGLY_TYPED": "set wherever it exists, which the version says",
        "EXPLICIT_BATCH": "set wherever it exists, which the version says",
    },
    "PreviewFeature": {
        "PROFILE_SHARING_0806": "set wherever it exists, which the version says",
    },
}
"""What trtbuild sets, and what in the key it follows from."""

EXCLUDED = {
    "MemoryPoolType": {
        "TACTIC_DRAM": "the device's memory bounds it; the device is in the target",
        "TACTIC_SHARED_MEMORY": "the device's; the device is in the target",
    },
    "NetworkDefinitionCreationFlag": {
        "EXPLICIT_PRECISION": "deprecated, and without effect since 8.5",
        "PREFER_AOT_PYTHON_PLUGINS": "plugins in Python are not taken",
        "PREFER_JIT_PYTHON_PLUGINS": "plugins in Python are not taken",
    },
    "OnnxParserFlag": {
        "ADJUST_FOR_DLA": DLA,
        "ENABLE_PLUGIN_OVERRIDE": DEFAULT,
        "ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA": DLA,
        "NATIVE_INSTANCENORM": DEFAULT,
        "REPORT_CAPABILITY_DLA": DLA,
    },
    "PreviewFeature": {
        "ALIASED_PLUGIN_IO_10_03": DEFAULT,
        "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": DEFAULT,
        "FASTER_DYNAMIC_SHAPES_0805": DEFAULT,
        "RUNTIME_ACTIVATION_RESIZE_10_10": DEFAULT,
    },
}
"""What it never sets, and why that is right."""

ENUMERATIONS = sorted({*KEYED, *EXCLUDED})


def used(kind: str) -> set[str]:
    """Return the members of an enumeration that the adapter's source names."""
    members = {*KEYED.get(kind, {}), *EXCLUDED.get(kind, {})}
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text()))]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    named |= {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return members & named


def test_a_network_is_made_with_the_two_flags_that_are_keyed() -> None:
    members = {**KEYED["NetworkDefinitionCreationFlag"]}
    every = [*members, *EXCLUDED["NetworkDefinitionCreationFlag"]]
    known = {name: bit for bit, name in enumerate(every)}
    trt: Any = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(__members__=known))
    assert trt_precision.network_flags(trt) == sum(1 << known[name] for name in members)


@pytest.mark.parametrize("kind", ENUMERATIONS)
def test_what_is_set_is_keyed_and_what_is_excluded_is_not_set(kind: str) -> None:
    assert used(kind) == set(KEYED.get(kind, {}))


@pytest.mark.rtx
@pytest.mark.parametrize("kind", ENUMERATIONS)
def test_the_installed_tensorrt_rtx_has_no_member_that_is_not_considered(kind: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    considered = {*KEYED.get(kind, {}), *EXCLUDED.get(kind, {})}
    assert set(getattr(trt, kind).__members__) <= considered


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ENUMERATIONS)
def test_the_installed_tensorrt_has_no_member_that_is_not_considered(kind: str) -> None:
    trt = pytest.importorskip("tensorrt")
    considered = {*KEYED.get(kind, {}), *EXCLUDED.get(kind, {})}
    assert set(getattr(trt, kind).__members__) <= considered


def test_one_place_sets_a_preview_feature_and_memory_pools_and_none_a_parser_flag() -> None:
    text = "".join(path.read_text() for path in MODULES)
    for call in ("parser.set_flag", "parser.flags", "setattr(parser"):
        assert call not in text
    assert text.count("set_preview_feature(") == 1
    assert text.count("set_memory_pool_limit(") == 1
