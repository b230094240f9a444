"""Policies: read strictly, the last pattern counts, what is written is read back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st

from trtbuild.errors import RecipeError
from trtbuild.quantization.policy import Policy, assign, load_policy, policy_schema, to_toml

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.quantization.policy import Word

NODES = ("/conv1/Conv", "/conv2/Conv", "/fc/Gemm", "/relu/Relu")
COMPUTE = frozenset(NODES[:3])


def read(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return load_policy(path)


def test_of_patterns_that_fit_a_node_the_last_one_counts(tmp_path: Path) -> None:
    text = '[policy]\ndefault = "int8"\n[policy.nodes]\n"/conv*" = "rest"\n"*2/Conv" = "int8"\n'
    text += '"/fc/*" = "fp32"'
    found = assign(read(tmp_path, text), NODES, COMPUTE)
    assert found.unquantized == {"/conv1/Conv", "/fc/Gemm"}
    assert found.fp32 == {"/fc/Gemm"}


def test_a_default_of_rest_quantizes_only_what_is_named(tmp_path: Path) -> None:
    text = '[policy]\ndefault = "rest"\n[policy.nodes]\n"/conv1/*" = "int8"'
    found = assign(read(tmp_path, text), NODES, COMPUTE)
    assert found.unquantized == {"/conv2/Conv", "/fc/Gemm"}, "a Relu follows its neighbors"


def test_a_pattern_that_fits_nothing_is_refused_with_what_is_near() -> None:
    policy = Policy(default="int8", nodes={"/conv3/Conv": "rest"})
    with pytest.raises(RecipeError, match=r"'/conv3/Conv' fits no node.*/conv[12]/Conv"):
        assign(policy, NODES, COMPUTE)


def test_a_name_with_brackets_or_a_star_is_that_node_before_it_is_a_pattern() -> None:
    names = ("conv [1]", "conv 1", "mul*", "mul2")
    policy = Policy(default="int8", nodes={"conv [1]": "rest", "mul*": "fp32"})
    assert assign(policy, names, frozenset(names)).unquantized == {"conv [1]", "mul*"}
    pattern = Policy(default="int8", nodes={"conv [12]": "rest", "mu*": "rest"})
    assert assign(pattern, names, frozenset()).unquantized == {"conv 1", "mul*", "mul2"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[policy", ("not valid TOML",)),
        ("", ("[policy]", "missing required field")),
        ('[polcy]\ndefault = "int8"', ("polcy", "expected policy")),
        ('[policy]\ndefalt = "int8"', ("defalt", "expected default or nodes")),
        ('[policy]\ndefault = "int9"', ("[policy] default", "int9", "expected int8 or fp8")),
        (
            '[policy]\ndefault = "int8"\n[policy.nodes]\n"/a" = "float32"',
            ("[policy.nodes]", "float32", "rest"),
        ),
        ('[policy]\ndefault = "int8"\n[policy.nodes]\n"/a" = 8', ("[policy.nodes]", "str")),
    ],
)
def test_a_mistake_is_named(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    for part in (str(tmp_path / "policy.toml"), *parts):
        assert part in str(caught.value)


def test_a_missing_policy_and_a_binary_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.toml: cannot read.*auto, all"):
        load_policy(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        load_policy(tmp_path / "binary.toml")


@hypothesis.given(
    st.dictionaries(st.text(), st.sampled_from(["int8", "rest", "fp32"])), st.text(), st.text()
)
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back_whatever_the_names(
    tmp_path: Path, nodes: dict[str, Word], heading: str, comment: str
) -> None:
    policy = Policy(default="int8", nodes=nodes)
    text = to_toml(policy, heading, dict.fromkeys(nodes, comment))
    found = read(tmp_path, text)
    assert found == policy
    assert list(found.nodes) == list(nodes), "the order decides which pattern counts"


def test_editors_get_a_schema() -> None:
    assert "default" in str(policy_schema()["$defs"])
