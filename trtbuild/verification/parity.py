"""Does the exported graph compute what the framework computes? Asked right after the export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtbuild.errors import ExportError, SourceError
from trtbuild.verification.accuracy import feed
from trtbuild.verification.results import OutputParity, Parity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends import Session
    from trtbuild.batches import Array, Batch

TOLERANCE = 1e-3
"""Largest difference that is still rounding, relative to the output's own scale.

The scale is the largest magnitude of the framework's output in the batch. An absolute tolerance
passes any graph whose outputs are small, and one relative to each element fails on every zero
crossing. Two correct float32 programs differ by the order of their sums: XFeat by 8e-5 of
absolute difference (maps of order 1), MiniLM by less. A wrong constant, a dropped branch or a
batch size that was baked in changes outputs by their own order of magnitude.
"""

_OTHER_SIZES = (1, 3)


def check_parity(
    framework: Session, exported: Session, batch: Batch, *, tolerance: float = TOLERANCE
) -> Parity:
    """Return how well ``exported`` agrees with ``framework`` on a batch of real inputs.

    The batch is compared whole and cut down to its first 1 and 3 samples, so that a batch size
    which the exporter baked in is found; a graph whose batch axis is fixed is only compared at
    that size. One row per output and batch size.

    Raises:
        DataError: the batch lacks an input.
        SourceError: the framework's own model fails on the batch.
        ExportError: the graph cannot run a batch size, or computes something else.
    """
    inputs = feed(framework, batch, 0) | feed(exported, batch, 0)
    rows: list[OutputParity] = []
    for size in _sizes(exported, inputs):
        cut = _cut(exported, inputs, size)
        expected, got = _run_both(framework, exported, cut, size)
        rows += [
            _compare(spec.name, size, (expected[spec.name], got[spec.name]), tolerance)
            for spec in exported.outputs
        ]
    return Parity(tolerance=tolerance, outputs=tuple(rows))


def _run_both(
    framework: Session, exported: Session, inputs: Mapping[str, Array], size: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the framework's and the graph's outputs, under the same names."""
    try:
        expected = framework.run({spec.name: inputs[spec.name] for spec in framework.inputs})
    except Exception as error:  # a framework raises what it likes
        message = (
            f"the original model fails at batch size {size}: {type(error).__name__}: {error}. "
            f"Give data that it can run, or a profile with a fixed batch size"
        )
        raise SourceError(message) from error
    try:
        got = exported.run({spec.name: inputs[spec.name] for spec in exported.inputs})
    except Exception as error:  # a runtime raises what it likes
        message = (
            f"the exported graph fails at batch size {size}, which the original model runs: "
            f"{type(error).__name__}: {error}. The export fixed a size: take shapes from the "
            f"inputs in the model's code, or give a profile with a fixed batch size"
        )
        raise ExportError(message) from error
    if set(expected) != set(got):
        message = (
            f"the exported graph has the outputs {sorted(got)}, the original model "
            f"{sorted(expected)}: return the same tensors in both, in one order"
        )
        raise ExportError(message)
    return expected, got


def _sizes(exported: Session, inputs: Mapping[str, Array]) -> tuple[int, ...]:
    """Return the batch sizes to compare, ascending; the full one is always among them."""
    first = exported.inputs[0]
    full = int(inputs[first.name].shape[0]) if inputs[first.name].ndim else 1
    if not first.shape or isinstance(first.shape[0], int):
        return (full,)
    return (*(size for size in _OTHER_SIZES if size < full), full)


def _cut(exported: Session, inputs: Mapping[str, Array], size: int) -> dict[str, Array]:
    """Return the first ``size`` samples: of the first axis, and of axes with its name."""
    first = exported.inputs[0]
    batch_axis = first.shape[0] if first.shape else ""
    full = inputs[first.name].shape[0] if inputs[first.name].ndim else 1
    found = dict(
        inputs
    )  # an input that the export dropped, since nothing reads it, stays whole
    for spec in exported.inputs:
        array = inputs[spec.name]
        axes = [
            axis
            for axis, name in enumerate(spec.shape)
            if isinstance(name, str)
            and array.shape[axis] == full
            and (axis == 0 or (name == batch_axis and name != "?"))
        ]
        if size < full and axes:
            index = tuple(slice(size) if i in axes else slice(None) for i in range(array.ndim))
            array = np.ascontiguousarray(array[index])
        found[spec.name] = array
    return found


def _compare(
    name: str, size: int, outputs: tuple[Array, Array], tolerance: float
) -> OutputParity:
    expected, got = outputs
    where = f"the export differs from the framework: output {name!r} at batch size {size}"
    if expected.shape != got.shape:
        message = (
            f"{where} has shape {list(got.shape)}, expected {list(expected.shape)}. "
            f"The export fixed a size: take shapes from the inputs in the model's code"
        )
        raise ExportError(message)
    wide, narrow = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(narrow)
    lost = int(
        np.count_nonzero(~finite & (wide != narrow) & ~(np.isnan(wide) & np.isnan(narrow)))
    )
    if lost:
        message = (
            f"{where}: {lost} of {wide.size} elements are NaN or infinite on one side only. "
            f"Look for a division, logarithm or mask that overflows, or try another opset"
        )
        raise ExportError(message)
    scale = float(np.abs(wide[finite]).max(initial=0.0))
    max_abs = float(np.abs(wide[finite] - narrow[finite]).max(initial=0.0))
    if max_abs > tolerance * scale:
        relative = f"{max_abs / scale:.2g} of" if scale > 0 else "against"
        message = (
            f"{where}: max abs difference {max_abs:.3g}, {relative} the output's scale "
            f"{scale:.3g}, expected at most {tolerance:g} of it. Check that the model is in "
            f"eval mode and has no random or data-dependent branch; if it has, export it "
            f"yourself and give the ONNX file"
        )
        raise ExportError(message)
    return OutputParity(
        output=name,
        batch_size=size,
        max_abs=max_abs,
        max_relative=max_abs / scale if scale > 0 else None,
        scale=scale,
        verdict="equal" if scale > 0 else "says nothing",
    )
