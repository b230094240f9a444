"""What a build takes beside graph and settings: libraries, times of kernels, a watcher."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import gpu, trt_settings
from trtbuild.canonical import digest
from trtbuild.engine import Fingerprint, Manifest, Setting, Target, Value
from trtbuild.errors import RecipeError
from trtbuild.recipe import recipe_from_json
from trtbuild.store import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trtbuild.pipeline.targets import Plan, Planned
    from trtbuild.store import Record, Store

PINNED = "pinned"
_SAY_EVERY_S = 10.0


class TimingKey(Value, frozen=True, kw_only=True):
    """What a timing cache is for (TensorRT, ITimingCache); mixed, they mislead a builder."""

    fingerprint: Fingerprint
    target: Target
    device: str
    flags: tuple[tuple[str, Setting], ...]


def timing_file(store: Store, planned: Planned) -> Path | None:
    """Return where a build finds, and leaves, times of kernels; None where it has no cache."""
    settings = dict(planned.settings)
    mode = str(settings.get("timing_cache", "off"))
    if mode == "off":
        return None
    if mode.startswith(f"{PINNED}:"):
        return store.path(mode.removeprefix(f"{PINNED}:"))
    if planned.timing_file:
        return Path(planned.timing_file)
    folder = store.top / "timing"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / _timing_key(planned)


def _timing_key(planned: Planned) -> str:
    here = (each.identity for each in gpu.gpus() if each.arch == planned.target.arch)
    names = {*trt_settings.FLAGS, "hardware_compatible"}
    key = TimingKey(
        fingerprint=planned.fingerprint,
        target=planned.target,
        device=next(here, ""),
        flags=tuple((name, value) for name, value in planned.settings if name in names),
    )
    return digest("timing-key/v1", key)


def with_pinned(plan: Plan, store: Store) -> Plan:
    """Return a plan whose pinned timing caches are in the store, and in the keys by digest.

    Raises:
        RecipeError: there is no such cache yet.
    """
    planned = tuple(_pinned(each, store) for each in plan.planned)
    return msgspec.structs.replace(plan, planned=planned)


def _pinned(planned: Planned, store: Store) -> Planned:
    settings = dict(planned.settings)
    word, _, file = str(settings.get("timing_cache", "")).partition(":")
    if word != PINNED:
        return planned
    path = Path(file) if file else store.top / "timing" / _timing_key(planned)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{planned.target}: no timing cache to pin ({path}: {error.strerror}): build once "
            "with --timing-cache auto, or name a file"
        ) from error
    settings["timing_cache"] = f"{PINNED}:{store.put_bytes('timing-cache', content).sha256}"
    return msgspec.structs.replace(planned, settings=tuple(sorted(settings.items())))


def libraries(store: Store, planned: Planned) -> tuple[Blob, ...]:
    """Return the plug-in libraries of an engine, stored first where their files are given.

    Raises:
        StoreError: the store does not have one whose file is not given.
    """
    if planned.plugins:
        return tuple(
            store.put_file(f"plugin-{index}", Path(path))
            for index, path in enumerate(planned.plugins)
        )
    found = filter(None, str(dict(planned.settings).get("plugins", "")).split(","))
    return tuple(
        Blob(
            name=f"plugin-{index}",
            sha256=sha256,
            bytes=store.verified_path(sha256).stat().st_size,
        )
        for index, sha256 in enumerate(found)
    )


def pinned_cache(store: Store, planned: Planned) -> tuple[Blob, ...]:
    """Return the pinned timing cache of an engine, if it has one, for its record to name.

    A collection keeps what a record names: without the cache nobody could build the engine of
    this key again.

    Raises:
        StoreError: the store does not have it (any more).
    """
    mode = str(dict(planned.settings).get("timing_cache", ""))
    if not mode.startswith(f"{PINNED}:"):
        return ()
    sha256 = mode.removeprefix(f"{PINNED}:")
    size = store.verified_path(sha256).stat().st_size
    return (Blob(name="timing-cache", sha256=sha256, bytes=size),)


def engines(store: Store) -> Iterator[tuple[Record, Manifest]]:
    """Yield the engines of a store with their manifests, but for those of another version."""
    for record in store.records("engine", Manifest):
        yield record, record.read(Manifest)


def seconds_before(store: Store, recipe: str, planned: Planned, precision: str) -> float:
    """Return the seconds of the last build of a recipe for a target, 0 where none is known."""
    newest, seconds = "", 0.0
    for _, manifest in engines(store):
        is_same = (
            str(manifest.preimage.target) == str(planned.target)
            and manifest.precision_requested == precision
            and manifest.created > newest
            and not manifest.refit_of  # that took a fraction of a build
        )
        if is_same and recipe_from_json(manifest.recipe).name == recipe:
            newest, seconds = manifest.created, manifest.build_seconds
    return seconds


class Watch:
    """Says now and then what a build is at, and how long it may take still."""

    def __init__(self, say: Callable[[str], None], name: str, expected_s: float) -> None:
        self._say = say
        self._name = name
        self._expected_s = expected_s
        self._started = self._said = time.monotonic()

    def __call__(self, doing: str) -> None:
        """Take what the build says that it is at."""
        now = time.monotonic()
        if not doing or now - self._said < _SAY_EVERY_S:
            return
        self._said = now
        self._say(line(self._name, doing, now - self._started, self._expected_s))


def line(name: str, doing: str, elapsed_s: float, expected_s: float) -> str:
    """Return a line on a running build; ``expected_s`` is what one took before, 0 for none."""
    rest = expected_s - elapsed_s
    left = f", about {rest:.0f} s left" if rest > 0 else ""
    late = f", longer than the {expected_s:.0f} s of before" if expected_s and not left else ""
    return f"{name}: {elapsed_s:.0f} s, {doing}{left}{late}"
