"""The timing cache: what TensorRT measured of its kernels, kept between builds.

A file belongs to one GPU model, one TensorRT and one set of flags; who calls chooses it. It is
only ever replaced as a whole, by a combination of what is in it and what a build measured, so
that it is never torn and never loses a time.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import filelock

from trtbuild.backends.timing_loan import replace_whole
from trtbuild.backends.trt_settings import PINNED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.backends.trt_config import Settings
    from trtbuild.backends.trt_log import Refusal

_LOCK_SECONDS = 60


class TimingCache:
    """The timing cache of one build, which ``mode`` (the setting ``timing_cache``) is about."""

    def __init__(self, mode: str, path: Path | None, refusal: Refusal) -> None:
        self._mode = mode
        self._path = path
        self._refusal = refusal
        self._before = b""
        self._refused = ""

    def load(self, trt: Any, config: Any, settings: Settings) -> None:  # noqa: ANN401  untyped bindings
        """Give the cache's content to ``config``, and the flags that its mode needs.

        Raises:
            BuildError: a pinned cache is not the one of the key, or TensorRT refuses it.
        """
        settings.flag("timing_cache = off", "DISABLE_TIMING_CACHE", wanted=self._mode == "off")
        pinned = self._mode.startswith(PINNED)
        if pinned and "ERROR_ON_TIMING_CACHE_MISS" in trt.BuilderFlag.__members__:
            settings.flag("timing_cache = pinned", "ERROR_ON_TIMING_CACHE_MISS", wanted=True)
        if self._mode == "off" or self._path is None:
            return
        self._before = self._path.read_bytes() if self._path.exists() else b""
        if pinned and hashlib.sha256(self._before).hexdigest() != self._mode[len(PINNED) :]:
            raise self._refusal.error("got another timing cache than the pinned one", [])
        if not self._offer(config, self._before) and pinned:
            raise self._refusal.error("refuses the pinned timing cache", self._said())

    def renew(self, config: Any) -> None:  # noqa: ANN401  untyped bindings
        """Give ``config`` an empty cache: times of an earlier build would build it again."""
        if self._mode != "off":
            self._offer(config, b"")

    def save(self, config: Any) -> None:  # noqa: ANN401  untyped bindings
        """Add what ``config`` has measured to the file; a pinned cache must not have grown.

        Raises:
            BuildError: something was timed that the pinned cache lacks (the flag for it did not
                catch all misses in TensorRT 11.0, NVIDIA/TensorRT-Model-Connect 451).
        """
        if self._path is None or self._mode == "off":
            return  # nor asked for: the bindings take what they return for theirs to free
        cache = config.get_timing_cache()
        if cache is None:
            return
        after = bytes(cache.serialize())
        if self._mode.startswith(PINNED):
            if len(after) > len(self._before):
                raise self._refusal.error(
                    "timed tactics that the pinned timing cache lacks", []
                )
            return
        self._keep(config, after)

    def _keep(self, config: Any, measured: bytes) -> None:  # noqa: ANN401  untyped bindings
        def combine(kept: bytes, more: bytes) -> bytes:
            both = config.create_timing_cache(kept)
            if both is None or not both.combine(config.create_timing_cache(more), False):  # noqa: FBT003  do not ignore a mismatch
                return more
            return bytes(both.serialize())

        messages = self._refusal.messages
        failed = ""
        if self._path is not None:
            failed = merge(self._path, measured, combine, self._refused)
        messages.errors.clear()
        if failed:
            messages.warnings.append(failed)

    def _offer(self, config: Any, content: bytes) -> bool:  # noqa: ANN401  untyped bindings
        """Let ``config`` use a cache with this content, an empty one if it is refused."""
        messages = self._refusal.messages
        messages.errors.clear()
        cache = config.create_timing_cache(content)
        taken = cache is not None and config.set_timing_cache(cache, False)  # noqa: FBT003  do not ignore a mismatch
        if taken and not messages.errors:
            return True
        if content:
            self._refused = hashlib.sha256(content).hexdigest()
            messages.warnings.append(
                "the timing cache was refused and is made anew: "
                + ("; ".join(messages.errors) or "it is for another GPU or TensorRT")
            )
            config.set_timing_cache(config.create_timing_cache(b""), False)  # noqa: FBT003  as above
        messages.errors.clear()
        return False

    def _said(self) -> list[str]:
        return self._refusal.messages.warnings[-1:]


def merge(
    path: Path,
    measured: bytes,
    combine: Callable[[bytes, bytes], bytes],
    refused_sha256: str = "",
) -> str:
    """Combine the cache in ``path``, if there is one, with ``measured``, and replace it.

    What TensorRT has refused, known by its digest, counts as nothing, however large it is.

    Several processes can do so at once: each combines with what is there when its turn comes. A
    result smaller than what is there means that TensorRT dropped times, and is not written.
    Return why the file could not be written, or an empty string: a build does not fail of it.
    """
    try:
        with filelock.FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            kept = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(kept).hexdigest() == refused_sha256:
                kept = b""
            both = combine(kept, measured) if kept else measured
            if len(both) >= len(kept) and both != kept:
                replace_whole(path, both)
    except (OSError, filelock.Timeout) as error:
        return f"the timing cache {path} was not extended: {error}"
    return ""
