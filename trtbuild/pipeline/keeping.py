"""Which nodes of a graph the recipe keeps in floating point."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from trtbuild.errors import RecipeError
from trtbuild.graph.model import load_structure
from trtbuild.graph.patterns import fitting
from trtbuild.quantization.placement import weight_index
from trtbuild.quantization.policy import (
    QUANTIZED,
    Assigned,
    assign,
    load_policy,
    quantized_word,
)
from trtbuild.sources import absolute
from trtbuild.sources.dependencies import Dependencies, FileRead, file_digest

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.quantization.policy import Policy
    from trtbuild.recipe import Recipe

WORDS = ("auto", "all")
"""Policies that are no file."""


def policy_path(recipe: Recipe) -> Path | None:
    """Return the policy file that the recipe names, None where it names none."""
    word = recipe.quantization.policy
    return None if word in WORDS else absolute(word, recipe.folder)


def policy_of(recipe: Recipe) -> Policy | None:
    """Return the policy that the recipe names a file of.

    Raises:
        RecipeError: it cannot be read, is wrong, or is for another precision.
    """
    path = policy_path(recipe)
    if path is None:
        return None
    policy = load_policy(path)
    word, asked = quantized_word(policy), recipe.quantization.precision
    if word and word != asked and asked in QUANTIZED:
        raise RecipeError(
            f"{path}: the policy quantizes to {word}, {recipe.name} asks for {asked}. "
            f"Correct one of them"
        )
    return policy


def policy_dependencies(recipe: Recipe) -> Dependencies:
    """Return the policy file as something that a run depends on."""
    path = policy_path(recipe)
    if path is None:
        return Dependencies()
    return Dependencies(files=(FileRead(path=str(path), sha256=file_digest(str(path))),))


def assigned(context: Context, graph: Graph) -> Assigned:
    """Return what the recipe's policy and ``keep_float`` leave alone.

    Raises:
        RecipeError: a pattern fits no node: a typing mistake would quantize what it names.
    """
    kept = _kept(context, graph)
    policy = policy_of(context.recipe)
    if policy is None:
        return Assigned(unquantized=kept, fp32=frozenset())
    model = load_structure(graph.path)
    names = [node.name or "" for node in model.graph]
    compute = frozenset(
        node.name or "" for node in model.graph if weight_index(node) is not None
    )
    try:
        found = assign(policy, names, compute)
    except RecipeError as error:
        raise RecipeError(f"{policy_path(context.recipe)}: {error}") from error
    return Assigned(unquantized=found.unquantized | kept, fp32=found.fp32)


def kept_nodes(context: Context, graph: Graph) -> frozenset[str]:
    """Return the nodes that stay in FP32 where the network is cast to FP16 or BF16.

    Raises:
        RecipeError: a pattern fits no node: a typing mistake would cast what it names.
    """
    return _kept(context, graph) | assigned(context, graph).fp32


def _kept(context: Context, graph: Graph) -> frozenset[str]:
    nodes = [node.name or "" for node in load_structure(graph.path).graph]
    kept: set[str] = set()
    for pattern in context.recipe.quantization.keep_float:
        found = fitting(nodes, pattern)
        if not found:
            close = difflib.get_close_matches(pattern, nodes, n=3, cutoff=0.0)
            raise RecipeError(
                f"{context.recipe.name}: keep_float {pattern!r} fits no node of the simplified "
                f"graph; the closest are {', '.join(close)}. Correct it, or leave it out"
            )
        kept.update(found)
    return frozenset(kept)
