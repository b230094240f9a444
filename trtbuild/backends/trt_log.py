"""What TensorRT says while it parses and builds: findings, errors, the last node it was at."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from trtbuild.backends.diagnosis import MEMORY_WORDS, NOISE
from trtbuild.backends.job import PROGRESS
from trtbuild.backends.trt_layers import HEADER
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trtbuild.backends.staging import Staged

_PARSING = re.compile(r"Parsing node: (onnx_node_\d+) ")
_TIMED = re.compile(r"Timing Runner: (.+) \(")
_PLACE = re.compile(r" In \w+ at \S+:\d+")
_UINT8 = "DequantizeLinear with UINT8 zero_point"

_HARMLESS = re.compile(
    r"Converting conv (?:activation|weight) scales to fp32|Make sure input .* has Int64 binding"
)
"""Told of all engines with INT8 or FP8 convolutions in FP16, and with INT64 inputs: as it
should be, the runtime checks the type of every input."""

_WORKSPACE = "raise the build option workspace_mib"
_REFIT = (
    "an engine that can be refitted or stripped is built on a machine with a GPU: move there, "
    "or leave out refit and strip_plan"
)

_KEPT = 1000

_OR_PLUGIN = ", or name a --plugin"
_OR_ELSEWHERE = (
    ", or replace it by operators of ONNX; plug-ins are for --backend tensorrt alone, and "
    "'onnxruntime' has operators of its own"
)

_SKIPPED = re.compile(
    r"Skipping tactic .*(?:memory|workspace)|insufficient to use tactic|"
    r"tactics do not have sufficient workspace"
)
_FAILED = re.compile(r"Skipping tactic ")
_MISSED = re.compile(r"(?:not found in|[Mm]iss(?:ed|ing)? .*) (?:the )?(?:local )?timing cache")
_REQUEST_MIB = re.compile(r"Tactic Device request: (\d+) ?MB")
_REQUEST_BYTES = re.compile(r"insufficient memory on requested size of (\d+)")

_REMEDIES = (
    ("within workspace limit", _WORKSPACE),
    ("workspace memory", _WORKSPACE),
    ("insufficient workspace", _WORKSPACE),
    ("try increasing the workspace", _WORKSPACE),
    ("graph_jit.cpp", _REFIT),
    ("has no setting", "leave it out, or install a version of TensorRT that has it"),
    ("did not take", "choose a value that it keeps"),
    (
        "imingCache",
        "the pinned timing cache lacks a tactic: build once with --timing-cache auto, then pin",
    ),
    ("iming cache", "build with --timing-cache off, or delete the cache's file"),
    ("FP32 GEMM is not supported", "convert the model to fp16, or build for sm_80 or newer"),
    (
        "HW-specific datatypes",
        "use a precision that this architecture has, or name a newer one",
    ),
    (
        "ould not find any implementation",
        (
            "raise the build option workspace_mib if tactics were skipped for memory; else "
            "replace the operator, or keep it in floating point (--keep-float)"
        ),
    ),
    ("has no runners", "keep the operator outside of the engine"),
    ("lugin", "it has no such operator: keep it outside of the engine{or_plugin}"),
    ("INT32", "leave biases in floating point"),
    ("Non-zero zero point", "quantize symmetrically"),
)


class Messages:
    """Collects the log of one process: TensorRT allows one logger in each.

    ``errors`` are those that the calling thread caused: one caller of a service must neither
    fail for what another did, nor lose its reason. Those of TensorRT's own threads are the
    thread's that follows a build, and nobody's in a service. ``warnings`` are everybody's.

    ``degraded`` counts what made the engine slower than it could be. ``tells_timing``: the log
    is all there is of progress, as in 8.6, and each layer that is timed is told.
    """

    def __init__(self) -> None:
        self._callers = threading.local()
        self._owner: list[str] = []
        self.warnings: list[str] = []
        self.degraded = Degraded()
        self.layers = ""
        self.tells_timing = False
        self._staged: Staged | None = None

    @property
    def errors(self) -> list[str]:
        """What was logged as an error in calls of this thread."""
        found: list[str] | None = getattr(self._callers, "errors", None)
        if found is None:
            found = self._callers.errors = []
        return found

    def follow(self, staged: Staged) -> None:
        """Take node names from ``staged`` and forget what was logged before it."""
        self._staged = staged
        self._owner = self.errors
        self.errors.clear()
        self.warnings.clear()
        self.degraded = Degraded()
        self.layers = ""

    def take(self, severity: str, text: str) -> None:
        """Take one message of TensorRT; ``severity`` is the name of its level."""
        if self.degraded.take(text):
            return
        if severity in {"ERROR", "INTERNAL_ERROR"}:
            if NOISE not in text.partition(" In ")[0]:
                mine: list[str] = getattr(self._callers, "errors", self._owner)
                _keep(mine, self.tidy(text))
        elif severity == "WARNING":
            if not _HARMLESS.search(text):
                _keep(self.warnings, self.tidy(text))
        elif text.startswith(HEADER):
            self.layers = text
        elif self._staged is not None:
            match = _PARSING.search(text)
            node = self._staged.nodes.get(match[1]) if match else None
            if node is not None:
                PROGRESS.debug("parsing node %r (%s)", node.name, node.operator)
            timed = _TIMED.search(text) if self.tells_timing else None
            if timed is not None:
                PROGRESS.debug("timing %s", self.tidy(timed[1]))

    def tidy(self, text: str) -> str:
        """Return one line without noise and source places, with the user's node names."""
        kept = [line for line in text.splitlines() if NOISE not in line]
        line = _PLACE.sub("", " ".join(" ".join(kept).split()))
        return self._staged.original(line) if self._staged is not None else line

    def narrowed(self) -> str:
        """Return the warning that uint8 values were read as int8, or an empty string."""
        return next((line for line in self.warnings if _UINT8 in line), "")


def _keep(lines: list[str], line: str) -> None:
    """Add a line, and drop the oldest beyond what anybody reads: a service runs for months."""
    lines.append(line)
    del lines[:-_KEPT]


class Degraded:
    """Counts the lines that say why an engine is slower than it could be.

    The lines (TensorRT 8.6 to 11, logged by its tactic timer):
    "Tactic Device request: 5123MB Available: 2048MB. Device memory is insufficient to use
    tactic.", "[UNSUPPORTED_STATE]Skipping tactic 3 due to insufficient memory on requested size
    of 5371854848 detected for tactic 0x...", "Some tactics do not have sufficient workspace
    memory to run.", "... is not found in the timing cache".
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.missed = 0
        self.most_mib = 0
        self.failed = 0

    def take(self, text: str) -> bool:
        """Count a line if it is of this kind, and tell whether it is."""
        mib = _REQUEST_MIB.search(text)
        size = _REQUEST_BYTES.search(text)
        if mib or size:
            wanted = int(mib[1]) if mib else int(size[1]) >> 20 if size else 0
            self.most_mib = max(self.most_mib, wanted)
        if _SKIPPED.search(text):
            self.skipped += 1
        elif _MISSED.search(text):
            self.missed += 1
        elif _FAILED.search(text):
            self.failed += 1
        else:
            return bool(mib or size) and "nsufficient" in text
        return True

    def findings(self) -> tuple[str, ...]:
        """Return what a reader of the report should know, and do."""
        found = []
        if self.skipped:
            most = f" (the largest wanted {self.most_mib} MiB)" if self.most_mib else ""
            found.append(
                f"degraded build: tactics were skipped for lack of memory, {self.skipped} "
                f"times{most}. The engine is correct and may be slow: free the GPU, or raise "
                "workspace_mib, and build again"
            )
        if self.failed:
            found.append(
                f"degraded build: {self.failed} tactics failed while they were timed and were "
                "left out. The engine is correct and may be slow: look at nvidia-smi"
            )
        if self.missed:
            found.append(
                f"the timing cache lacked {self.missed} tactics, which were timed now: engines "
                "of two such builds can differ"
            )
        return tuple(found)


class Refusal:
    """What TensorRT's refusals are told about: the model, the version, the architecture."""

    def __init__(self, model: Path, subject: str, messages: Messages) -> None:
        self.messages = messages
        self._model = model
        self._subject = subject

    def error(self, what: str, reasons: Iterable[str]) -> BuildError:
        """Return the error that TensorRT ``what``, for these reasons, with what to do.

        Raises:
            MemoryError: the reasons say that memory was lacking.
        """
        detail = "; ".join(dict.fromkeys(filter(None, reasons)))
        if any(word in detail for word in MEMORY_WORDS):
            raise MemoryError(detail)
        said = f": {detail}" if detail else ""
        skipped = self.messages.degraded.findings() if "mplementation" in detail else ()
        also = "".join(f". {finding}" for finding in skipped)
        return BuildError(
            f"{self._model}: {self._subject} {what}{said}{also}. What to do: "
            f"{remedy(what + detail, self._subject)}"
        )


def remedy(text: str, subject: str) -> str:
    """Return what to do about an error of ``subject``, TensorRT or TensorRT-RTX."""
    found = next(
        (what for words, what in _REMEDIES if words in text),
        "change what it names, or build for 'onnxruntime'",
    )
    return found.format(or_plugin=_OR_ELSEWHERE if "TensorRT-RTX" in subject else _OR_PLUGIN)
