"""Whether optimization profiles fit the inputs of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from trtbuild.engine import ShapeRange, TensorSpec
    from trtbuild.graph import Graph


def check(graph: Graph, profiles: tuple[tuple[ShapeRange, ...], ...]) -> None:
    """Refuse a profile that names another input, or whose shapes do not fit one.

    Raises:
        BuildError: the message names profile, input, axis and what was expected.
    """
    specs = {spec.name: spec for spec in graph.inputs}
    for index, profile in enumerate(profiles):
        for shapes in profile:
            if shapes.input not in specs:
                message = (
                    f"{graph.path}: profile {index} names input {shapes.input!r}, which the "
                    f"model does not have: expected one of {', '.join(map(repr, specs))}"
                )
                raise BuildError(message)
            _check_shapes(f"{graph.path}: profile {index}", specs[shapes.input], shapes)


def check_complete(graph: Graph, profiles: tuple[tuple[ShapeRange, ...], ...]) -> None:
    """Refuse profiles that leave out an input with dynamic axes.

    Raises:
        BuildError: the message names the input.
    """
    dynamic = [
        spec for spec in graph.inputs if any(isinstance(size, str) for size in spec.shape)
    ]
    for spec in dynamic:
        without = [
            index
            for index, profile in enumerate(profiles)
            if all(shapes.input != spec.name for shapes in profile)
        ]
        if not profiles or without:
            example = "x".join(
                str(size) if isinstance(size, int) else "1" for size in spec.shape
            )
            message = (
                f"{graph.path}: input {spec.name!r} has dynamic axes {list(spec.shape)} and "
                "no shapes: give min, opt and max, as in --shape "
                f"{spec.name}:{example},{example},{example}"
            )
            raise BuildError(message)


def _check_shapes(where: str, spec: TensorSpec, shapes: ShapeRange) -> None:
    if len(shapes.opt) != len(spec.shape):
        message = (
            f"{where}: input {spec.name!r} has {len(spec.shape)} axes {list(spec.shape)}, the "
            f"profile gives {len(shapes.opt)}: {list(shapes.opt)}"
        )
        raise BuildError(message)
    for axis, size in enumerate(spec.shape):
        given = (shapes.min[axis], shapes.opt[axis], shapes.max[axis])
        if isinstance(size, int) and given != (size, size, size):
            message = (
                f"{where}: axis {axis} of input {spec.name!r} is always {size}, the profile "
                f"gives min, opt, max {given}: give {size}, or export the axis as dynamic"
            )
            raise BuildError(message)
