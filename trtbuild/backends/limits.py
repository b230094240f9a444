"""Resource limits that a child sets on itself before it looks at a stranger's bytes."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def bound(wanted: Mapping[int, int]) -> None:
    """Set limits, by their numbers in ``resource``; one that is lower already stays."""
    for name, value in wanted.items():
        _, hard = resource.getrlimit(name)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (limit, limit))
