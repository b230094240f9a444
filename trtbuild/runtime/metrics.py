"""What all engines count that this process has loaded, as one text for Prometheus."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from trtbuild.backends import metrics as figures

if TYPE_CHECKING:
    from trtbuild.backends.session import LoadedSession

CONTENT_TYPE = figures.CONTENT_TYPE

_loaded: weakref.WeakSet[LoadedSession] = weakref.WeakSet()


def register(session: LoadedSession) -> None:
    """Count a session in as long as somebody holds it."""
    _loaded.add(session)


def render() -> str:
    """Return the figures of every session of :func:`trtbuild.load` that somebody holds."""
    return figures.render([session.stats for session in list(_loaded)])
