"""Check batches against a model's inputs, and hash them, one batch at a time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from trtbuild.canonical import encode
from trtbuild.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trtbuild.batches import Array, Batch
    from trtbuild.engine import TensorSpec

DIGEST_TAG = b"trtbuild/data/v1\n"
"""What the hash of data begins with."""


def checked(
    batches: Iterable[Batch], inputs: tuple[TensorSpec, ...], provider_name: str, what: str
) -> Iterator[Batch]:
    """Yield ``batches`` as they are, each checked against ``inputs``; labels are left alone.

    ``what`` is the provider's function, ``calibration_batches``. Axes of one name must have one
    size within a batch. Floating-point inputs must be finite.

    Raises:
        DataError: there is no batch, or one does not fit; the message names provider,
            function, batch (counted from 0) and tensor.
    """
    count = 0
    for count, batch in enumerate(batches, start=1):
        where = f"{provider_name}: {what}: batch {count - 1}"
        sizes: dict[str, tuple[int, str]] = {}
        for spec in inputs:
            if spec.name not in batch:
                raise DataError(
                    f"{where}: input {spec.name!r} is missing; the batch has "
                    f"{', '.join(map(repr, batch)) or 'nothing'}"
                )
            array = batch[spec.name]
            _check_array(array, spec, f"{where}: input {spec.name!r}")
            _check_sizes(array, spec, sizes, where)
        yield batch
    if count == 0:
        raise DataError(
            f"{provider_name}: {what} yields no batch; expected dicts of arrays by input name"
        )


def data_digest(batches: Iterable[Batch]) -> str:
    """Return the sha256 over all batches in order: names, types, shapes and bytes.

    Names count in sorted order within a batch; how the samples are cut into batches counts.
    """
    total = hashlib.sha256(DIGEST_TAG)
    for batch in batches:
        add_batch(total, batch)
    return total.hexdigest()


def add_batch(total: hashlib._Hash, batch: Batch) -> None:
    """Add one batch to the hash of :func:`data_digest`, which begins with its tag."""
    for name in sorted(batch):
        array = np.asarray(batch[name], order="C")
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        header = encode([name, little.dtype.str, list(little.shape)])
        total.update(len(header).to_bytes(8, "little") + header)
        total.update(little.reshape(-1).view(np.uint8).data)
    total.update(b"\xff")


def _check_array(array: object, spec: TensorSpec, where: str) -> None:
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{where} is of type {type(array).__name__}, expected a NumPy array of {spec.dtype}"
        )
    if array.dtype.name != spec.dtype:
        raise DataError(
            f"{where} is {array.dtype.name}, the model takes {spec.dtype}. Convert it in the "
            f"provider: array.astype({spec.dtype!r})"
        )
    fits = array.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == have
        for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{where} has the shape {list(array.shape)}, the model takes {_shape(spec)}"
        )
    if array.size == 0:
        raise DataError(f"{where} has the shape {list(array.shape)}: it holds no value")
    _check_finite(array, where)


def _check_finite(array: Array, where: str) -> None:
    if array.dtype.kind not in "fc":
        return
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{where} has {int(array.size - finite.sum())} values that are NaN or infinite, "
            f"the first at {list(first)}. Leave such samples out, or repair them"
        )


def _check_sizes(
    array: Array, spec: TensorSpec, sizes: dict[str, tuple[int, str]], where: str
) -> None:
    for axis, name in enumerate(spec.shape):
        if not isinstance(name, str) or name == "?":
            continue
        size = int(array.shape[axis])
        known, other = sizes.setdefault(name, (size, spec.name))
        if known != size:
            raise DataError(
                f"{where}: inputs {other!r} and {spec.name!r} must agree on {name!r}, but have "
                f"{known} and {size}"
            )


def _shape(spec: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.shape))}]"


def as_batch(value: object, where: str) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return what a provider yielded, if it is a batch.

    Raises:
        DataError: it is no dict, or has a name that is no text or a value that is no array.
    """
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is of type {type(value).__name__}, expected a dict of NumPy arrays by "
            "name"
        )
    for name, array in value.items():
        if not isinstance(name, str):
            raise DataError(f"{where} has the name {name!r}, expected text")
        if not isinstance(array, np.ndarray):
            raise DataError(
                f"{where}: {name!r} is of type {type(array).__name__}, expected a NumPy array"
            )
    return value
