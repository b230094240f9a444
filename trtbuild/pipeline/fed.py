"""What an engine of the store is timed on: a recipe's data, a user's, or drawn values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from trtbuild.backends import feeds
from trtbuild.batches import rechunk
from trtbuild.engine import Value
from trtbuild.errors import DataError, TrtbuildError, UsageError
from trtbuild.recipe import recipe_from_json
from trtbuild.sources.checks import checked
from trtbuild.sources.provider import load_provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trtbuild.batches import Array, Batch
    from trtbuild.engine import Manifest, ShapeRange, TensorSpec

_LOOKED_AT = 64
"""Batches of data among which one of the wanted shape is looked for."""

_SEED = 20_250_104


class Wish(Value, frozen=True, kw_only=True):
    """What a user asks for: data, the size of axis 0, and shapes by input."""

    data: str = ""
    batch: int | None = None
    shapes: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fed:
    """Arrays by input name, and a few words on where they are from."""

    arrays: dict[str, Array]
    origin: str


def feed(manifest: Manifest, wish: Wish) -> Fed:
    """Return one batch for an engine: of its profile's ``opt`` where the wish says nothing.

    Data is what the wish names, else what the engine's recipe does. Where there is neither, or
    the recipe's cannot be read any more, values are drawn, and the origin says so.

    Raises:
        UsageError: the shapes do not fit the engine.
        DataError: the data that the wish names cannot be used.
    """
    unknown = set(wish.shapes) - {spec.name for spec in manifest.inputs}
    if unknown:
        names = ", ".join(repr(spec.name) for spec in manifest.inputs)
        raise UsageError(
            f"--shape: engine {manifest.sha256[:12]} has no input {min(unknown)!r}: expected "
            f"one of {names}"
        )
    found = _from_data(manifest, wish) if wish.data else _from_recipe(manifest, wish)
    feeds.check(manifest.inputs, found.arrays)
    _check_profiles(manifest, found.arrays)
    return found


def one_batch(
    batches: Iterable[Batch],
    names: Iterable[str],
    size: int,
    tuned: Mapping[str, tuple[int, ...]],
) -> dict[str, Array]:
    """Return one batch of ``size``, with the shapes ``tuned`` where there are such samples.

    Where all have other shapes, as sequences may, it is the first batch of that size; too few
    samples are repeated.
    """
    looked_at = list(itertools.islice(rechunk(batches, names, size), _LOOKED_AT))
    fitting = (
        batch
        for batch in looked_at
        if all(batch[name].shape[1:] == shape[1:] for name, shape in tuned.items())
    )
    batch = dict(next(fitting, looked_at[0]))
    lengths = {array.shape[:1] for array in batch.values()}
    if len(lengths) == 1 and lengths not in ({()}, {(size,)}):
        batch = {
            name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()
        }
    return batch


def _from_recipe(manifest: Manifest, wish: Wish) -> Fed:
    recipe = recipe_from_json(manifest.recipe)
    name = recipe.quantization.provider
    if name is None:
        return _drawn(manifest, wish, "its recipe names no data")
    try:
        return _read(manifest, wish, name, recipe.folder)
    except TrtbuildError as error:
        return _drawn(manifest, wish, f"its recipe's data cannot be used: {error}")


def _from_data(manifest: Manifest, wish: Wish) -> Fed:
    return _read(manifest, wish, wish.data, Path.cwd())


def _read(manifest: Manifest, wish: Wish, name: str, folder: Path) -> Fed:
    provider = load_provider(name, folder, None if name.endswith(".py") else name)
    inputs = manifest.inputs
    batches = checked(provider.calibration_batches(), _any_batch(inputs), name, "the data")
    shapes = _shapes(manifest, wish)
    size = next((shape[0] for shape in shapes.values() if shape), 1)
    arrays = one_batch(batches, [spec.name for spec in inputs], size, shapes)
    for input_name, wanted in _wanted(manifest, wish).items():
        got = arrays[input_name].shape
        if got != wanted and not (input_name not in wish.shapes and got[:1] == wanted[:1]):
            raise DataError(
                f"{name}: no sample makes input {input_name!r} of shape {list(wanted)} (found "
                f"{list(got)}): give a --shape or --batch of the data, or other --data"
            )
    return Fed(arrays=arrays, origin=f"data of {name}")


def _wanted(manifest: Manifest, wish: Wish) -> dict[str, tuple[int, ...]]:
    """Return the shapes, by input, of which the user gave all sizes or the first one."""
    if wish.batch is None:
        return wish.shapes
    return {name: shape for name, shape in _shapes(manifest, wish).items() if shape}


def _any_batch(inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return the inputs with an open first axis: batches of data are cut to size later."""
    return tuple(
        spec
        if not spec.shape
        else type(spec)(name=spec.name, dtype=spec.dtype, shape=("?", *spec.shape[1:]))
        for spec in inputs
    )


def _drawn(manifest: Manifest, wish: Wish, why: str) -> Fed:
    """Draw normal values; integers are 1 and booleans true, which most models take."""
    shapes = _shapes(manifest, wish)
    random = np.random.default_rng(_SEED)
    arrays: dict[str, Array] = {}
    for spec in manifest.inputs:
        shape = shapes.get(spec.name) or _closed(spec, wish.batch)
        values = random.standard_normal(shape) if "float" in spec.dtype else np.ones(shape)
        arrays[spec.name] = values.astype(spec.dtype)
    told = "drawn: normal values, integers are 1"
    return Fed(arrays=arrays, origin=f"{told} ({why}); --data names others")


def _shapes(manifest: Manifest, wish: Wish) -> dict[str, tuple[int, ...]]:
    """Return the wanted shapes by input: the user's, else the profile's of the user's batch.

    An axis of one name has one size: a shape that the user gives one input reaches the others.
    """
    profile = next(iter(manifest.preimage.profiles), ())
    found = {item.input: item.opt for item in profile if item.opt}
    for spec in manifest.inputs:
        if spec.name not in found and all(isinstance(size, int) for size in spec.shape):
            found[spec.name] = tuple(int(size) for size in spec.shape)
        if wish.batch is not None and found.get(spec.name):
            found[spec.name] = (wish.batch, *found[spec.name][1:])
    named = {
        axis: size
        for spec in manifest.inputs
        for axis, size in zip(spec.shape, wish.shapes.get(spec.name, ()), strict=False)
        if isinstance(axis, str) and axis != "?"
    }
    alike = {
        spec.name: tuple(
            named.get(axis, size) if isinstance(axis, str) else size
            for axis, size in zip(spec.shape, found[spec.name], strict=True)
        )
        for spec in manifest.inputs
        if spec.name in found
    }
    return found | alike | wish.shapes


def _closed(spec: TensorSpec, batch: int | None) -> tuple[int, ...]:
    """Return the shape of an input without a profile, if only its first axis is open."""
    sizes = [size for size in spec.shape[1:] if not isinstance(size, int)]
    if sizes:
        raise UsageError(
            f"input {spec.name!r} has open axes {list(spec.shape)}, and the engine has no "
            f"profile: give --shape {spec.name}:SIZES joined by x"
        )
    first = spec.shape[:1]
    head = tuple(size if isinstance(size, int) else batch or 1 for size in first)
    return (*head, *(size for size in spec.shape[1:] if isinstance(size, int)))


def _check_profiles(manifest: Manifest, arrays: Mapping[str, Array]) -> None:
    """Refuse shapes that no optimization profile of the engine has."""
    profiles = manifest.preimage.profiles
    if not profiles:
        return
    if any(all(_inside(item, arrays) for item in profile) for profile in profiles):
        return
    item = next(item for item in profiles[0] if not _inside(item, arrays))
    raise UsageError(
        f"engine {manifest.sha256[:12]}: input {item.input!r} of shape "
        f"{list(arrays[item.input].shape)} is outside of its profile: min {list(item.min)}, "
        f"max {list(item.max)}. Give --batch or --shape within it"
    )


def _inside(item: ShapeRange, arrays: Mapping[str, Array]) -> bool:
    shape = arrays[item.input].shape
    return len(shape) == len(item.min) and all(
        low <= size <= high for low, size, high in zip(item.min, shape, item.max, strict=True)
    )
