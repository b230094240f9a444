"""PyTorch as the reference: a program or module behind the interface of a session."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import torch

from trtbuild.engine import TensorSpec
from trtbuild.errors import DataError
from trtbuild.sources.torch_names import named_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trtbuild.batches import Array


class TorchSession:
    """The original model in eval mode, without gradients, one call at a time.

    PyTorch models declare no types or shapes. Before the first run ``inputs`` has the names of
    the inputs that ``forward`` needs, with the type ``?`` and no axes, and ``outputs`` is
    empty; afterwards both tell that run's types and shapes.
    """

    def __init__(
        self,
        label: str,
        forward: Callable[[Mapping[str, torch.Tensor]], object],
        names: tuple[str, ...],
        required: frozenset[str],
    ) -> None:
        """Take a ``forward`` of tensors by name; ``names`` are all that it knows."""
        self._label = label
        self._forward = forward
        self._names = names
        self._required = required
        self._lock = threading.Lock()
        self._inputs = tuple(
            TensorSpec(name=name, dtype="?", shape=()) for name in names if name in required
        )
        self._outputs: tuple[TensorSpec, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the last run; names alone before the first."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the last run; empty before the first."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name for arrays by input name; other names are ignored.

        bfloat16 outputs, which NumPy has not, come as float32.

        Raises:
            DataError: an input is missing, or the model raised on these.
        """
        missing = sorted(self._required - inputs.keys())
        if missing:
            raise DataError(
                f"{self._label}: input {missing[0]!r} is missing; forward takes "
                f"{', '.join(self._names)}"
            )
        given = {name: inputs[name] for name in self._names if name in inputs}
        with self._lock, contextlib.redirect_stdout(sys.stderr), torch.inference_mode():
            try:
                value = self._forward(tensors(given))
            except Exception as error:  # forward is the user's code
                shapes = ", ".join(
                    f"{n} {a.dtype.name} {list(a.shape)}" for n, a in given.items()
                )
                raise DataError(
                    f"{self._label}: forward raised {type(error).__name__}: {error} (inputs: "
                    f"{shapes})"
                ) from error
            found = arrays_of(named_outputs(value, given))
            self._inputs, self._outputs = _specs(given), _specs(found)
        return found


def tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Return copies of ``arrays`` as CPU tensors: some are mapped from read-only files."""
    return {name: torch.from_numpy(np.array(a, order="C")) for name, a in arrays.items()}


def arrays_of(named: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Return copies of tensors as arrays, by the same names."""
    return {name: array(tensor) for name, tensor in named.items()}


def array(tensor: torch.Tensor) -> Array:
    """Return a copy of a tensor as an array; bfloat16 becomes float32, which holds it."""
    plain = tensor.detach().cpu()
    if plain.dtype is torch.bfloat16:
        plain = plain.float()
    return np.array(plain.numpy())


def _specs(arrays: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=name, dtype=a.dtype.name, shape=tuple(a.shape))
        for name, a in arrays.items()
    )
