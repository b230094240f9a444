"""Single flight: of all who want one key at one time, one makes it and the others wait.

Leases save work; correctness does not depend on them. Without working locks a result is made
several times, and still the first writer's is everybody's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import time
from typing import TYPE_CHECKING

import filelock

from trtbuild.errors import StoreError
from trtbuild.store import counters
from trtbuild.store.publish import explained
from trtbuild.store.record import check_digest, check_kind
from trtbuild.store.temporary import new_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record

POLL_S = 0.1
"""How often who waits looks for the lease and for the record."""


def get_or_make(
    store: Store,
    kind: str,
    key: str,
    make: Callable[[], Record],
    shape: type[object] = object,
) -> tuple[Record, bool]:
    """Return the record of ``key``, and whether somebody else had made it.

    ``make`` runs in this process when nobody has, and stores its blobs itself. ``shape`` is as
    in :meth:`Store.get`.

    Raises:
        StoreError: the store cannot be read or written.
    """
    with _errors_counted(store, kind):
        found = store.here.get(kind, key, shape)
        if found is None:
            found = store.get(kind, key, shape)
            if found is not None:  # a remote tier had it, and that was counted there
                return found, True
    if found is None:
        with flight(store, kind, key, shape) as found:
            if found is None:
                made = make()
                if (made.kind, made.key) != (kind, key):
                    message = f"asked for {kind} {key}, got that of {made.kind} {made.key}"
                    raise ValueError(message)
                counters.count_record(store, made, found=False)
                return store.put(made, shape), False
    counters.count_record(store, found, found=True)
    return found, True


@contextlib.contextmanager
def _errors_counted(store: Store, kind: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        tally = counters.Tally(tier="local", kind=kind, outcome="error", count=1)
        counters.count(store, tally)
        raise


@contextlib.contextmanager
def flight(
    store: Store, kind: str, key: str, shape: type[object] = object
) -> Iterator[Record | None]:
    """Wait for the lease on ``key``; yield None to who must make it now, else the record.

    Who waits leaves as soon as the record appears, whoever wrote it. Not reentrant. The caller
    has asked remote tiers before: they are asked again only under their lease.
    """
    folder = store.top / "lease"
    with explained(store.root):
        if not _locks_work(folder):
            store.note(folder, "file locks do nothing here: results may be made more than once")
    lease = filelock.FileLock(folder / f"{check_kind(kind)}.{check_digest(key)}")
    while not _acquired(lease, store.root):
        # Who holds it asks the remote tiers, for all of us.
        found = store.here.get(kind, key, shape)
        if found is not None:
            yield found
            return
        time.sleep(POLL_S)
    try:
        found = store.here.get(kind, key, shape)
        if found is not None:
            yield found
            return
        with store.flight(kind, key, shape) as appeared:
            yield appeared
    finally:
        lease.release()


def _acquired(lease: filelock.BaseFileLock, root: Path) -> bool:
    with explained(root):
        try:
            lease.acquire(blocking=False)
        except filelock.Timeout:  # an OSError too, but no fault
            return False
        except OSError as error:
            # NFS without its lock daemon. Work is done more than once then; filelock itself
            # turns to marker files where the call is not implemented.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        return True


@functools.cache
def _locks_work(folder: Path) -> bool:
    """Tell whether a second lock on one file is refused; some file systems grant it.

    Lustre, GPFS and NFS with nolock do (huggingface/huggingface_hub #4306).
    """
    path = folder.parent / "tmp" / new_name()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    first = os.open(path, flags, 0o600)
    second = os.open(path, flags, 0o600)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # not implemented here: filelock then uses marker files
        return False
    else:
        return False
    finally:
        os.close(first)
        os.close(second)
        path.unlink()
