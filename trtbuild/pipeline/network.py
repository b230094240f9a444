"""What a backend builds, and how to run it where the target's device is absent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtbuild.graph import Graph
    from trtbuild.report.document import CalibrationRow, PolicyReport


@dataclass(frozen=True, kw_only=True)
class Network:
    """The graph that a backend builds, and how to run it where the target's device is absent.

    ``fused`` is whether that run may use integer kernels: true only where the backend's own
    engine does on this machine. ``policy`` says what stays in floating point and why, ``None``
    where nothing does and nobody looked.
    """

    graph: Graph
    twin: Graph
    fused: bool
    rows: tuple[CalibrationRow, ...]
    policy: PolicyReport | None = None

    @property
    def chosen(self) -> bool:
        """Whether held-out batches chose between networks, and must not judge this one."""
        return len(self.rows) > 1 or (self.policy is not None and bool(self.policy.trials))
