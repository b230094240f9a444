"""ONNX graphs: the only readers, writers and hashers of ONNX.

This door is light: it holds the value that names a graph; what reads one is in the modules.
"""

from __future__ import annotations

from pathlib import Path

from trtbuild.engine import TensorSpec, Value


class Graph(Value, frozen=True, kw_only=True):
    """An ONNX file, the digest of its content, and its typed inputs and outputs.

    ``path`` is not part of the identity; ``sha256`` is: equal content has equal digests
    wherever it lies, external data included, producer and documentation strings excluded.
    """

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


__all__ = ["Graph"]
