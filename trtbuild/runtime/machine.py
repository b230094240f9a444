"""Whether an engine is for this machine and for what is installed here.

Read on the way to a cache hit: imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import runtime
from trtbuild.backends.session import DEFAULT
from trtbuild.errors import TrustError

if TYPE_CHECKING:
    from trtbuild.backends.session import SessionOptions
    from trtbuild.engine import Manifest


def preflight(manifest: Manifest, options: SessionOptions = DEFAULT) -> None:
    """Refuse an engine that this machine cannot run, before its bytes are read.

    Raises:
        MissingBackendError: driver, GPU, library or package is missing here, or too old.
        TrustError: T12, the engine is for another machine, GPU or version of its library.
        UsageError: an option has no meaning for it.
    """
    try:
        runtime(manifest.preimage.target.backend).preflight(manifest, options)
    except TrustError as error:
        raise TrustError(str(error), error.code or "T12") from error
