"""What TensorRT says while it parses and builds: findings, errors, the last node it was at."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trtbuild.backends.diagnosis import NOISE
from trtbuild.backends.job import PROGRESS
from trtbuild.backends.trt_layers import HEADER

if TYPE_CHECKING:
    from trtbuild.backends.staging import Staged

_PARSING = re.compile(r"Parsing node: (onnx_node_\d+) ")
_PLACE = re.compile(r" In \w+ at \S+:\d+")
_UINT8 = "DequantizeLinear with UINT8 zero_point"

_HARMLESS = re.compile(
    r"Converting conv (?:activation|weight) scales to fp32|Make sure input .* has Int64 binding"
)
"""Told of all engines with INT8 or FP8 convolutions in FP16, and with INT64 inputs: as it
should be, the runtime checks the type of every input."""

_REMEDIES = (
    ("within workspace limit", "raise the build option workspace_mib"),
    ("workspace memory", "raise the build option workspace_mib"),
    ("did not take", "choose a value that it keeps"),
    ("FP32 GEMM is not supported", "convert the model to fp16, or build for sm_80 or newer"),
    (
        "HW-specific datatypes",
        "use a precision that this architecture has, or name a newer one",
    ),
    ("ould not find any implementation", "replace the operator, or keep it in floating point"),
    ("has no runners", "keep the operator outside of the engine"),
    ("lugin", "TensorRT-RTX has no such operator: keep it outside of the engine"),
    ("INT32", "leave biases in floating point"),
    ("Non-zero zero point", "quantize symmetrically"),
)


class Messages:
    """Collects the log of one process: TensorRT allows one logger in each."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""
        self._staged: Staged | None = None

    def follow(self, staged: Staged) -> None:
        """Take node names from ``staged`` and forget what was logged before it."""
        self._staged = staged
        self.errors.clear()
        self.warnings.clear()
        self.layers = ""

    def take(self, severity: str, text: str) -> None:
        """Take one message of TensorRT; ``severity`` is the name of its level."""
        if severity in {"ERROR", "INTERNAL_ERROR"}:
            if NOISE not in text.partition(" In ")[0]:
                self.errors.append(self.tidy(text))
        elif severity == "WARNING":
            if not _HARMLESS.search(text):
                self.warnings.append(self.tidy(text))
        elif text.startswith(HEADER):
            self.layers = text
        elif self._staged is not None:
            match = _PARSING.search(text)
            node = self._staged.nodes.get(match[1]) if match else None
            if node is not None:
                PROGRESS.debug("parsing node %r (%s)", node.name, node.operator)

    def tidy(self, text: str) -> str:
        """Return one line without noise and source places, with the user's node names."""
        kept = [line for line in text.splitlines() if NOISE not in line]
        line = _PLACE.sub("", " ".join(" ".join(kept).split()))
        return self._staged.original(line) if self._staged is not None else line

    def narrowed(self) -> str:
        """Return the warning that uint8 values were read as int8, or an empty string."""
        return next((line for line in self.warnings if _UINT8 in line), "")


def remedy(text: str) -> str:
    """Return what to do about an error of TensorRT."""
    return next(
        (what for words, what in _REMEDIES if words in text),
        "change what it names, or build for 'onnxruntime'",
    )
