"""How long each node of an ONNX Runtime engine takes on this machine."""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING

import onnxruntime as ort

from trtbuild.backends.ort_session import failures

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from trtbuild.batches import Array

_WARM_UP_CALLS = 2
_SUFFIX = "_kernel_time"
_ERRORS_ONLY = 3


def node_ms(
    engine: bytes, inputs: Mapping[str, Array], calls: int, work: Path
) -> dict[str, float]:
    """Return the median time of each node of an engine over ``calls`` calls, in milliseconds.

    Names are those of the engine's own nodes, as it was optimized. The profile is written into
    the folder ``work``. Measured by the runtime itself, the time of its profiling included,
    so figures are to be compared with each other only.

    Raises:
        DataError: the model fails on ``inputs``.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _ERRORS_ONLY
    options.enable_profiling = True
    options.profile_file_prefix = str(work / "profile")
    session = ort.InferenceSession(engine, options, providers=["CPUExecutionProvider"])
    for _ in range(_WARM_UP_CALLS + calls):
        with failures(inputs):
            session.run(None, dict(inputs))
    with open(session.end_profiling(), encoding="utf-8") as file:  # noqa: PTH123  a str of its
        events = json.load(file)
    times: dict[str, list[float]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            times.setdefault(name.removesuffix(_SUFFIX), []).append(event["dur"] / 1000)
    return {name: statistics.median(found[_WARM_UP_CALLS:]) for name, found in times.items()}
