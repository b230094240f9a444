"""Whether arrays are what a session takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from trtbuild.engine import TensorSpec


def check(specs: tuple[TensorSpec, ...], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Refuse arrays whose names, types, ranks or sizes are not those of the inputs ``specs``.

    Axes with one name must have one size.

    Raises:
        UsageError: the message names the input, what was expected and what was given.
    """
    names = [spec.name for spec in specs]
    given: object = arrays
    if not isinstance(given, Mapping):
        message = (
            f"expected a dict of arrays by input name ({names}), got {type(given).__name__}"
        )
        raise UsageError(message)
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names]
    if missing or unknown:
        message = f"expected the inputs {names}, got {list(arrays)}" + "".join(
            f"; {label} {found}"
            for label, found in (("missing", missing), ("unknown", unknown))
            if found
        )
        raise UsageError(message)
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        array: object = arrays[spec.name]
        if not isinstance(array, np.ndarray):
            message = f"input {spec.name!r}: expected a NumPy array, got {type(array).__name__}"
            raise UsageError(message)
        _check_array(spec, array, sizes)


def _check_array(
    spec: TensorSpec, array: npt.NDArray[Any], sizes: dict[str, tuple[int, str]]
) -> None:
    if array.dtype.name != spec.dtype or not array.dtype.isnative:
        got = array.dtype.name if array.dtype.isnative else array.dtype.str
        message = (
            f"input {spec.name!r}: expected {spec.dtype}, got {got}: convert it "
            f"with .astype({spec.dtype!r})"
        )
        raise UsageError(message)
    if array.ndim != len(spec.shape):
        message = (
            f"input {spec.name!r}: expected {len(spec.shape)} axes {list(spec.shape)}, got "
            f"shape {list(array.shape)}"
        )
        raise UsageError(message)
    for axis, (size, got) in enumerate(zip(spec.shape, array.shape, strict=True)):
        if isinstance(size, int) and got != size:
            message = (
                f"input {spec.name!r}: expected shape {list(spec.shape)}, got "
                f"{list(array.shape)} (axis {axis} must be {size})"
            )
            raise UsageError(message)
        if isinstance(size, str) and size != "?":
            first, owner = sizes.setdefault(size, (got, spec.name))
            if first != got:
                message = (
                    f"input {spec.name!r}: axis {axis} is {size!r}, which is {first} in input "
                    f"{owner!r}, got {got}"
                )
                raise UsageError(message)
