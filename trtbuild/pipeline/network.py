"""What a backend builds, and how to run it where the target's device is absent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtbuild.graph import Graph
    from trtbuild.report.document import CalibrationRow


@dataclass(frozen=True, kw_only=True)
class Network:
    """The graph that a backend builds, and how to run it where the target's device is absent.

    ``fused`` is whether that run may use integer kernels: true only where the backend's own
    engine does on this machine.
    """

    graph: Graph
    twin: Graph
    fused: bool
    rows: tuple[CalibrationRow, ...]
