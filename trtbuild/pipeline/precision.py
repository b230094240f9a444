"""What the recipe's precision means for one backend: its scheme, the rest, the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import backend
from trtbuild.errors import RecipeError

if TYPE_CHECKING:
    from trtbuild.backends.scheme import Scheme, WeightScheme
    from trtbuild.engine import Precision, Rest, Target
    from trtbuild.recipe import Recipe


def rest_of(recipe: Recipe, name: str) -> Rest:
    """Return what computes around quantized layers: the recipe's wish, or the backend's choice.

    Raises:
        RecipeError: the backend computes nothing in it.
    """
    known = backend(name).RESTS
    rest = recipe.quantization.rest
    if rest == "auto":
        return backend(name).rest()
    if rest not in known:
        raise RecipeError(
            f"{recipe.name}: {name} computes around quantized layers in {' or '.join(known)}, "
            f"got rest = {rest!r}: ask for auto, or for another backend"
        )
    return rest


def scheme_of(recipe: Recipe, name: str) -> Scheme:
    """Return how the backend ``name`` wants the recipe's quantized graph."""
    scheme = backend(name).SCHEMES[recipe.quantization.precision]
    return msgspec.structs.replace(scheme, rest=rest_of(recipe, name))


def weight_scheme_of(recipe: Recipe, name: str) -> WeightScheme:
    """Return how the backend ``name`` wants the recipe's packed weights."""
    scheme = backend(name).WEIGHTS[recipe.quantization.precision]
    return msgspec.structs.replace(scheme, rest=rest_of(recipe, name))


def baseline_of(target: Target, precision: Precision) -> Precision | None:
    """Return the precision of the engine that a speed-up is over, None where there is none.

    What a user would build otherwise: FP16 on a GPU, FP32 on a processor and for FP16 itself.
    """
    if precision == "fp32":
        return None
    rest = backend(target.backend).RESTS[0]
    return "fp32" if precision in ("fp16", "bf16") else rest
