"""Which axes of an input vary, and whether what was exported agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import ExportError, RecipeError
from trtbuild.recipe import profile_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trtbuild.engine import ShapeRange, TensorSpec


def dynamic_axes(
    shapes: Mapping[str, tuple[int, ...]], profiles: tuple[ShapeRange, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the axes of each input that vary; ``shapes`` are those of the example.

    An axis varies where its ``min`` and ``max`` differ; axis 0 does where an input has no
    profile.

    Raises:
        RecipeError: a profile is for an unknown input, or for another shape than the example's.
    """
    check_names(profiles, shapes)
    ranges = {profile.input: profile for profile in profiles}
    axes: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        profile = ranges.get(name)
        if profile is None:
            axes[name] = (0,) if shape else ()
            continue
        _check_example(profile, shape)
        axes[name] = tuple(
            axis
            for axis, (lo, hi) in enumerate(zip(profile.min, profile.max, strict=True))
            if lo != hi
        )
    return axes


def check_names(profiles: tuple[ShapeRange, ...], names: Iterable[str]) -> None:
    """Refuse a profile for an input that the model does not have.

    Raises:
        RecipeError: as above; the message lists the inputs.
    """
    known = tuple(names)
    for profile in profiles:
        if profile.input not in known:
            raise RecipeError(
                f"{profile_table(profile.input)}: the model has no input of this name, "
                f"expected one of {', '.join(known)}"
            )


def check_dims(inputs: tuple[TensorSpec, ...], profiles: tuple[ShapeRange, ...]) -> None:
    """Compare the axes of a graph with those that the profiles ask for.

    Raises:
        RecipeError: a profile has an unknown input or another rank, or asks for other sizes of
            an axis that the model fixes.
    """
    specs = {spec.name: spec for spec in inputs}
    check_names(profiles, specs)
    for profile in profiles:
        shape = specs[profile.input].shape
        if len(shape) != len(profile.min):
            raise RecipeError(
                f"{profile_table(profile.input)}: has {len(profile.min)} axes, but the "
                f"model's input is {list(shape)}"
            )
        for axis, size in enumerate(shape):
            lo, hi = profile.min[axis], profile.max[axis]
            if isinstance(size, int) and not lo == hi == size:
                raise RecipeError(
                    f"{profile_table(profile.input)}: axis {axis} is fixed at {size} in the "
                    f"model, but the profile asks for {lo} to {hi}. Fix it at {size} in the "
                    "profile, or export the model with that axis dynamic"
                )


def check_exported(inputs: tuple[TensorSpec, ...], axes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the axes of an exported graph with those that should vary.

    Raises:
        ExportError: the exporter fixed one of them.
    """
    for spec in inputs:
        for axis in axes[spec.name]:
            if isinstance(spec.shape[axis], int):
                raise ExportError(
                    f"input {spec.name!r}: axis {axis} should vary, but the exporter fixed it "
                    f"at {spec.shape[axis]}. Make the model independent of that size, or fix "
                    f"the axis: min = opt = max in {profile_table(spec.name)}"
                )


def _check_example(profile: ShapeRange, shape: tuple[int, ...]) -> None:
    where = f"{profile_table(profile.input)}"
    if len(shape) != len(profile.min):
        raise RecipeError(
            f"{where}: has {len(profile.min)} axes, but the data has the shape {list(shape)}"
        )
    for axis, size in enumerate(shape):
        lo, hi = profile.min[axis], profile.max[axis]
        if lo == hi != size:
            raise RecipeError(
                f"{where}: fixes axis {axis} at {lo}, but the data has the shape "
                f"{list(shape)}. Correct the profile, or let min and max differ on that axis"
            )
