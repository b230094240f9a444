"""The sandbox of a build: bubblewrap, where it is installed and allowed to work.

The builder sees the system's libraries, the Python that runs it and the model's folder, all
read-only, and one folder that it may write to. It has no network, no home, no other process, an
empty ``/tmp``, and of the devices only NVIDIA's. Whether that works here is tried out once:
inside of containers and where user namespaces are off it does not, and builds then run with
resource limits alone.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from trtbuild.engine import Value
from trtbuild.errors import MissingBackendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Mode = Literal["auto", "off", "require"]

VARIABLE = "TRTBUILD_SANDBOX"

_INSTALL = "install bubblewrap (Debian: apt install bubblewrap)"
_SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr", "nix", "gnu")
_SETTINGS = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nv_tegra_release",
    "/run/nvidia-persistenced",
    "/sys",
)
_DEVICES = (
    *("nvidia*", "dri", "dxg"),
    *("nvhost*", "nvmap", "nvsciipc", "nvgpu", "host1x-fence"),
)
"""Data center, desktop and WSL; and Jetson, of which JetPack 6 has the last two."""

_SITE = ("site-packages", "dist-packages")
_TRIAL_S = 30
_SIGNALED = 128
"""bubblewrap exits with 128 and the number of the signal that ended its child, as shells do."""


class Sandbox(Value, frozen=True, kw_only=True):
    """Whether builds are confined here: the program that does it, or why nothing does."""

    program: str = ""
    reason: str = ""
    remedy: str = ""


def mode() -> Mode:
    """Return what ``TRTBUILD_SANDBOX`` asks for; ``auto`` without it.

    Raises:
        UsageError: it holds something else.
    """
    text = os.environ.get(VARIABLE, "") or "auto"
    if text not in get_args(Mode):
        message = f"{VARIABLE}={text}: expected one of {', '.join(get_args(Mode))}"
        raise UsageError(message)
    return cast("Mode", text)


def chosen() -> Sandbox:
    """Return the sandbox of the next build, as the environment asks for it.

    Raises:
        MissingBackendError: one is required, and none works here.
        UsageError: ``TRTBUILD_SANDBOX`` is no mode.
    """
    asked = mode()
    if asked == "off":
        return Sandbox(reason=f"{VARIABLE}=off", remedy=f"unset {VARIABLE}")
    found = tried(shutil.which("bwrap") or "")
    if asked == "require" and not found.program:
        message = (
            f"{VARIABLE}=require, but builds cannot be confined here: {found.reason}. "
            f"{found.remedy[:1].upper()}{found.remedy[1:]}, or set {VARIABLE}=auto"
        )
        raise MissingBackendError(message)
    return found


@functools.cache
def tried(program: str) -> Sandbox:
    """Return whether ``program`` can start our interpreter confined, learned by doing it."""
    if not program:
        return Sandbox(reason="bubblewrap is not installed", remedy=_INSTALL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [*confined(program, (), (folder,)), sys.executable, "-S", "-c", ""]
        try:
            done = subprocess.run(  # noqa: S603  bubblewrap with our own arguments
                command, capture_output=True, text=True, timeout=_TRIAL_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Sandbox(reason=f"{program} does not work: {error}", remedy=_INSTALL)
    if done.returncode == 0:
        return Sandbox(program=program)
    said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
    return Sandbox(
        reason=f"bubblewrap does not work here: {said}",
        remedy=(
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or "
            "user.max_user_namespaces), or run the container with them"
        ),
    )


def confined(program: str, readable: Iterable[Path], writable: Sequence[Path]) -> list[str]:
    """Return the words before a command that confine it; it starts in ``writable[0]``."""
    words = [program, "--die-with-parent", "--cap-drop", "ALL"]
    words += ["--unshare-user-try", "--unshare-cgroup-try"]
    words += [f"--unshare-{name}" for name in ("ipc", "net", "pid", "uts")]
    words += [*_system(), "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108  the sandbox's own
    devices = {str(path) for pattern in _DEVICES for path in Path("/dev").glob(pattern)}
    for path in sorted(devices):
        words += ["--dev-bind-try", path, path]
    for path in (*_SETTINGS, *_interpreter(), *map(str, readable)):
        words += ["--ro-bind-try", path, path]
    for path in map(str, writable):
        words += ["--bind", path, path]
    return [*words, "--chdir", str(writable[0]), "--"]


def returncode(code: int) -> int:
    """Return the code of a confined process as ``subprocess`` has it: negative for a signal."""
    return _SIGNALED - code if code > _SIGNALED else code


def _system() -> Iterator[str]:
    """Yield the words for the system's folders; on most systems ``/lib`` is a link."""
    for name in _SYSTEM:
        path = Path("/") / name
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))


def _interpreter() -> tuple[str, ...]:
    """Return the folders of this Python, of its packages and of this package.

    An entry of ``sys.path`` that is no folder of packages may be the user's own: it stays out.
    """
    places = [sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parents[1])]
    places += [path for path in sys.path if Path(path).name in _SITE]
    places += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    places.append(str(Path(sys.executable).resolve().parents[1]))
    return tuple(dict.fromkeys(path for path in places if path.startswith("/") and path != "/"))
