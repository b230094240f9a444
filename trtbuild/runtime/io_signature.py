"""Whether what was loaded has the inputs and outputs that its manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtbuild.backends import Session
    from trtbuild.engine import TensorSpec


def signature_problem(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], session: Session
) -> str:
    """Return how a session differs from these inputs and outputs, empty if it does not."""
    if not same_signature(inputs, session.inputs):
        return f"its inputs are {session.inputs}, its manifest says {inputs}"
    if not same_signature(outputs, session.outputs):
        return f"its outputs are {session.outputs}, its manifest says {outputs}"
    return ""


def same_signature(expected: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> bool:
    """Tell whether names, types, ranks and fixed sizes are equal, in order.

    An open axis has a name in one library and none in another.
    """
    return len(expected) == len(found) and all(
        (one.name, one.dtype, len(one.shape)) == (two.name, two.dtype, len(two.shape))
        and all(
            a == b or isinstance(a, str) or isinstance(b, str)
            for a, b in zip(one.shape, two.shape, strict=True)
        )
        for one, two in zip(expected, found, strict=True)
    )
