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
DRIVER = (
    "install the NVIDIA driver that this version needs, or its build for the driver's CUDA; "
    "'trtbuild doctor' tells which driver is here"
)
_GPU_UNKNOWN = (
    "a GPU that is newer than TensorRT needs a newer TensorRT, one older than sm_75 needs "
    "TensorRT 10.4 or older: install that, or use another GPU"
)
_GPU_FULL = (
    "free the GPU (see nvidia-smi), lower the build option workspace_mib or the "
    "largest shapes of the profiles, or build on a GPU with more memory"
)
_REFIT = (
    "an engine that can be refitted or stripped is built on a machine with a GPU: move there, "
    "or leave out refit and strip_plan"
)

_NARROWED = (
    "give them the types that it reads, with a Cast in the model; for INT64, which 8.6 lacks, "
    "or install TensorRT 10 or newer"
)
_KEPT = 1000

_OR_PLUGIN = ", or name a --plugin"
_OR_ELSEWHERE = (
    ", or replace it by operators of ONNX; plug-ins are for --backend tensorrt alone, and "
    "'onnxruntime' has operators of its own"
)

_SKIPPED = re.compile(
    r"Skipping tactic .*(?:(?<!illegal )memory|workspace|oom error)|"
    r"insufficient to use tactic|tactics do not have sufficient workspace"
)
_UNSUITED = re.compile(r"Skipping tactic .* due to exception canImplement")
"""Logged as an error, but only says that a kernel is not for this layer (onnxruntime 22164)."""

_FAILED = re.compile(r"Skipping tactic ")
_GPU_MEMORY = re.compile(
    r"OutOfMemory \(|\(out of memory\)|Requested amount of GPU memory|defaultAllocator\.cpp"
)
"""Logged as errors whenever a tactic gets no memory, also in builds that then go on without it
(NVIDIA/TensorRT 2643, 3882)."""

_DUMPED = re.compile(
    r"memory allocations dump as below|^\[\w+\]:\d+ ?:.* in \w+: at \S+: \d+ idx: \d+"
)
"""The list of all allocations that follows, a warning each (NVIDIA/TensorRT 3183)."""

_MISSED = re.compile(r"(?:not found in|[Mm]iss(?:ed|ing)? .*) (?:the )?(?:local )?timing cache")
_REQUEST_MIB = re.compile(r"Tactic Device request: (\d+) ?MB")
_REQUEST_BYTES = re.compile(
    r"(?:insufficient memory|oom error) on requested size of (\d+)|"
    r"Requested amount of GPU memory \((\d+) bytes\)|Requested size was (\d+) bytes"
)

_REMEDIES = (
    ("Target GPU SM", _GPU_UNKNOWN),
    ("Unsupported SM", _GPU_UNKNOWN),
    ("no kernel image", _GPU_UNKNOWN),
    ("driver version is insufficient", DRIVER),
    ("CUDA initialization failure", DRIVER),
    ("on this machine, asked is core", "name a core that is there, or leave dla_core out"),
    ("nothing in FP32 on DLA", "ask for --precision fp16 or int8, or leave dla_core out"),
    ("within workspace limit", _WORKSPACE),
    ("workspace memory", _WORKSPACE),
    ("insufficient workspace", _WORKSPACE),
    ("try increasing the workspace", _WORKSPACE),
    (
        "libnvinfer_lean",
        "pip install tensorrt-lean of the same version, or set exclude_lean_runtime",
    ),
    (
        "libnvinfer_builder_resource_win",
        (
            "install TensorRT's Debian package libnvinfer-win-builder-resource or its archive, "
            "with that library's folder in LD_LIBRARY_PATH; or leave runtime_platform out"
        ),
    ),
    ("graph_jit.cpp", _REFIT),
    ("has no setting", "leave it out, or install a version of TensorRT that has it"),
    ("did not take", "choose a value that it keeps"),
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
    (
        "imingCache",
        "the pinned timing cache lacks a tactic: build once with --timing-cache auto, then pin",
    ),
    ("iming cache", "build with --timing-cache off, or delete the cache's file"),
    ("has no runners", "keep the operator outside of the engine"),
    ("lugin", "it has no such operator: keep it outside of the engine{or_plugin}"),
    ("has type Int32 but must have", "leave biases in floating point"),
    (
        "reads shapes from the values",
        "make it a constant of the model, or compute it there from the shape of another input",
    ),
    ("reads the inputs as", _NARROWED),
    ("reads the outputs as", _NARROWED),
    ("Non-zero zero point", "quantize symmetrically"),
)


class Messages:
    """Collects the log of one process: TensorRT allows one logger in each.

    ``errors`` are those that the calling thread caused: one caller of a service must neither
    fail for what another did, nor lose its reason. Those of TensorRT's own threads are the
    thread's that follows a build, and nobody's in a service. ``warnings`` are everybody's.

    ``degraded`` counts what made the engine slower than it could be. ``tells_timing``: the log
    is all there is of progress, as in 8.6, and each layer that is timed is told.
    ``times_tactics``: the builder is at work, and goes on without a kernel that gets no memory.
    """

    def __init__(self) -> None:
        self._callers = threading.local()
        self._owner: list[str] = []
        self.warnings: list[str] = []
        self.degraded = Degraded()
        self.layers = ""
        self.tells_timing = False
        self.times_tactics = False
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
        if self.times_tactics and _GPU_MEMORY.search(text):
            self.degraded.take_full(self.tidy(text))
            return
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
            self._tell(text, self._staged)

    def _tell(self, text: str, staged: Staged) -> None:
        """Tell what the build is at, where a line says that."""
        match = _PARSING.search(text)
        node = staged.nodes.get(match[1]) if match else None
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
    memory to run.", "... is not found in the timing cache", and while tactics are timed
    "[virtualMemoryBuffer.cpp::resizePhysical] Error Code 2: OutOfMemory (...)",
    "[defaultAllocator.cpp::allocate] Error Code 1: Cuda Runtime (out of memory)", "Requested
    amount of GPU memory (4294967296 bytes) could not be allocated."
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.full = 0
        self.last_full = ""
        self.missed = 0
        self.most_mib = 0
        self.failed = 0

    def take(self, text: str) -> bool:
        """Count a line if it is of this kind, and tell whether it is."""
        if _UNSUITED.search(text) or _DUMPED.search(text):
            return True
        mib = self._measure(text)
        if _SKIPPED.search(text):
            self.skipped += 1
        elif _MISSED.search(text):
            self.missed += 1
        elif _FAILED.search(text):
            self.failed += 1
        else:
            return mib and "nsufficient" in text
        return True

    def take_full(self, text: str) -> None:
        """Count a line that says that the GPU has no memory left, and keep the last."""
        self._measure(text)
        self.full += 1
        self.last_full = text

    def _measure(self, text: str) -> bool:
        """Keep the largest size that was asked for; tell whether a line says one."""
        mib = _REQUEST_MIB.search(text)
        size = _REQUEST_BYTES.search(text)
        wanted = int(mib[1]) if mib else int(size[size.lastindex or 1]) >> 20 if size else 0
        self.most_mib = max(self.most_mib, wanted)
        return bool(mib or size)

    def findings(self) -> tuple[str, ...]:
        """Return what a reader of the report should know, and do."""
        found = []
        most = f" (the largest wanted {self.most_mib} MiB)" if self.most_mib else ""
        if self.full and not self.skipped:
            found.append(
                f"degraded build: the GPU had no memory left, {self.full} times{most}. The "
                "engine is correct and may be slow: free the GPU, and build again"
            )
        if self.skipped:
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
            MemoryError: the reasons say that the machine's memory was lacking.
        """
        detail = "; ".join(dict.fromkeys(filter(None, reasons)))
        degraded = self.messages.degraded
        full = _GPU_MEMORY.search(detail) is not None
        on_gpu = "TensorRT-RTX" not in self._subject  # which builds in the machine's memory
        if full and not on_gpu:
            raise MemoryError(detail)
        if not full and any(word in detail for word in MEMORY_WORDS):
            raise MemoryError(detail)
        said = f": {detail}" if detail else ""
        if full:
            most = f", the largest piece {degraded.most_mib} MiB" if degraded.most_mib else ""
            said += f". The memory of the GPU was not enough{most}"
        skipped = degraded.findings() if "mplementation" in detail and not full else ()
        also = "".join(f". {finding}" for finding in skipped)
        advice = _GPU_FULL if full else remedy(what + detail, self._subject)
        return BuildError(
            f"{self._model}: {self._subject} {what}{said}{also}. What to do: {advice}"
        )


def remedy(text: str, subject: str) -> str:
    """Return what to do about an error of ``subject``, TensorRT or TensorRT-RTX."""
    found = next(
        (what for words, what in _REMEDIES if words in text),
        "change what it names, or build for 'onnxruntime'",
    )
    return found.format(or_plugin=_OR_ELSEWHERE if "TensorRT-RTX" in subject else _OR_PLUGIN)
