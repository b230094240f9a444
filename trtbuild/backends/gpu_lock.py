"""One build or measurement at a time on one GPU: times taken beside another's work mislead.

TensorRT chooses kernels by timing them, and a latency is a promise. So whoever times something
on a GPU holds a lock that all processes of this machine see, whatever store they use. Services
that only run engines hold none: they cannot be told to stop.

A lock is a file in ``/run/lock`` (``/tmp`` where that cannot be written), named after the GPU's
PCI bus id, so that slices of one GPU (MIG) share it. Containers see each other's locks where
they share that folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.backends import gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trtbuild.engine import Target

FOLDERS = (Path("/run/lock"), Path("/tmp"))  # noqa: S108  for all users; see _open
_POLL_S = 0.2
_READABLE = 0o444


def measured(targets: Sequence[Target]) -> tuple[str, ...]:
    """Return the PCI bus ids of the GPUs that engines for ``targets`` run on here."""
    buses = gpu.pci_bus_ids()
    indices = {gpu.index_for(each) for each in targets} - {-1}
    return tuple(sorted(buses[index] for index in indices))


@contextlib.contextmanager
def all_of(buses: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Wait until all of these GPUs are free of builds and measurements, and hold them."""
    with contextlib.ExitStack() as stack:
        for bus in sorted(set(buses)):  # in one order, or two could wait for each other
            stack.enter_context(one_of((bus,), say))
        yield


@contextlib.contextmanager
def one_of(buses: Sequence[str], say: Callable[[str], None]) -> Iterator[str]:
    """Wait until one of these GPUs is free, hold it, and yield its bus id.

    Without any, nothing is held and the id is empty. ``say`` is told what it waits for, and
    where no lock can be had; then the GPU is used without one.
    """
    files = {bus: _open(bus) for bus in dict.fromkeys(buses)}
    try:
        yield _held(files, say) if files else ""
    finally:
        for file in files.values():
            if file is not None:
                os.close(file)  # which lets the lock go


def _held(files: dict[str, int | None], say: Callable[[str], None]) -> str:
    told = False
    while True:
        for bus, file in files.items():
            if file is None:
                say(f"GPU {bus}: no lock can be had in {FOLDERS[-1]}: nobody is kept off it")
                return bus
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            return bus
        if not told:
            say(f"waiting for GPU {' or '.join(files)}: another build or measurement is on it")
            told = True
        time.sleep(_POLL_S)


def _open(bus: str) -> int | None:
    """Return the open lock file of a GPU, made where it is not there; None where neither works.

    It is opened for reading only, which a lock needs no more than: it is often another user's,
    and the kernel refuses to open such a file for writing in a folder that all may write to
    (fs.protected_regular). A link is not followed.
    """
    name = f"trtbuild-gpu-{bus.lower().replace(':', '-')}.lock"
    common = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for folder in FOLDERS:
        for flags in (common, common | os.O_CREAT | os.O_EXCL, common):
            with contextlib.suppress(OSError):
                return os.open(folder / name, flags, _READABLE)
    return None
