"""Round weights so that a layer's output changes least, not each weight by itself.

The objective is AdaRound's, ||W X - Wq X||² per layer (Nagel et al., ICML 2020), solved in
closed form column by column as GPTQ does (Frantar et al., ICLR 2023, algorithm 1): the error of
each rounded column moves into the columns not yet rounded, by the inverse of the second moment
of the inputs. The grid is the caller's: any function from numbers to the nearest ones allowed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Doubles = npt.NDArray[np.float64]

VERSION = 2
"""Part of the key of rounded weights; raised when they start to be others."""

_DAMPING = 0.01
"""Added to the diagonal, as a share of its mean (GPTQ's default)."""

_BLOCK = 128
"""Columns whose errors are handed on together: rank-one updates stay in the cache."""


def rounded(
    weight: Doubles, second_moment: Doubles, nearest: Callable[[Doubles, int], Doubles]
) -> Doubles:
    """Return ``weight`` [outputs, inputs] on its grid, with little error behind the inputs.

    ``second_moment`` is the sum or mean of x xᵀ, [inputs, inputs]. ``nearest`` gets a column
    [outputs] and its index, and returns the nearest allowed values. Columns of large inputs are
    rounded first. An input that is always 0 does not matter: its column is rounded as it is.
    A weight of 0 stays 0, as the pattern of sparse kernels needs it.
    """
    order = np.argsort(-np.diagonal(second_moment), kind="stable")
    left = weight[:, order].copy()
    result = np.empty_like(left)
    absent = left == 0
    factor = _inverse_root(second_moment[np.ix_(order, order)])
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        errors = np.empty((len(weight), stop - start))
        for column in range(start, stop):
            there = nearest(left[:, column], int(order[column]))
            result[:, column] = np.where(absent[:, column], 0.0, there)
            error = (left[:, column] - result[:, column]) / factor[column, column]
            left[:, column:stop] -= np.outer(error, factor[column, column:stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return np.asarray(result[:, inverse])


def _inverse_root(second_moment: Doubles) -> Doubles:
    """Return the upper Cholesky factor of the inverse of the damped second moment."""
    diagonal = np.diagonal(second_moment)
    dead = diagonal <= 0
    damped = second_moment.copy()
    mean = float(diagonal.mean()) or 1.0
    damped[np.diag_indices_from(damped)] += np.where(dead, mean, 0.0) + _DAMPING * mean
    inverse = np.linalg.inv(damped)
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
