"""Collecting by itself: only where ``TRTBUILD_CACHE_HIGH`` asks for it, and hourly at most."""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING

from trtbuild.errors import StoreError, UsageError
from trtbuild.store.collect import Limits, collect
from trtbuild.store.sizes import shown_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.store.local import Store

HIGH, LOW = "TRTBUILD_CACHE_HIGH", "TRTBUILD_CACHE_LOW"

_LOW_SHARE = 0.7
_EVERY_S = 3600.0
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGT]?)(i?)B?")
_PREFIXES = ("", "k", "M", "G", "T")


def parse_size(text: str, what: str) -> int:
    """Return the bytes that ``50GB``, ``1.5 GiB`` or ``1000`` mean; ``what`` is who said it.

    Raises:
        UsageError: it is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        message = f"{what} {text!r}: expected a size such as 50GB, 1.5GiB or 1000"
        raise UsageError(message)
    prefix = "k" if found[2] == "K" else found[2]
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _PREFIXES.index(prefix))


def limits_of(high: str, low: str) -> Limits:
    """Return limits from two sizes; without the second it is 70 % of the first.

    Raises:
        UsageError: one is no size, or they are the wrong way round.
    """
    high_bytes = parse_size(high, "--high")
    low_bytes = parse_size(low, "--low") if low else int(high_bytes * _LOW_SHARE)
    if low_bytes > high_bytes:
        message = f"--low {low} is above --high {high}: give a smaller one"
        raise UsageError(message)
    return Limits(high_bytes=high_bytes, low_bytes=low_bytes)


def collect_if_asked(store: Store, say: Callable[[str], None]) -> None:
    """Collect if the environment says above which size, unless that was looked at of late.

    What goes wrong is said and stops nobody: the work that came before is done.

    Raises:
        UsageError: the environment holds no size.
    """
    high = os.environ.get(HIGH, "")
    if not high:
        return
    limits = limits_of(high, os.environ.get(LOW, ""))
    stamp = store.top / "lease" / "collected"
    with contextlib.suppress(OSError):
        if time.time() - stamp.stat().st_mtime < _EVERY_S:
            return
    try:
        found = collect(store, limits)
        stamp.touch(mode=0o600)
    except (StoreError, OSError) as error:
        say(f"the store was not collected: {error}")
        return
    if found.records or found.blobs:
        say(
            f"collected the store ({HIGH}={high}): "
            f"{shown_size(found.before_bytes)} to {shown_size(found.after_bytes)}"
        )
