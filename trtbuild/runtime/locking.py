"""Make and check lockfiles: which engines a policy admits, for which models and targets."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec

from trtbuild.engine import Manifest, Value
from trtbuild.errors import TrtbuildError, TrustError, UsageError
from trtbuild.recipe import recipe_name
from trtbuild.runtime import trust_files
from trtbuild.runtime.admission import judge
from trtbuild.store import find_engine
from trtbuild.store.statements import signed_subjects
from trtbuild.trust.candidate import Pin
from trtbuild.trust.lockfile import Lock, wrong_lock

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Store
    from trtbuild.trust.policy import Policy


class Checked(Value, frozen=True, kw_only=True):
    """One entry: what is pinned, who signed it, and why it cannot be served, if so.

    ``created`` is when the engine was built, ``origin`` what of: its precision, and where its
    model was. Both are empty where its record is lost. ``overtaken``: a newer release was
    loaded here.
    """

    model: str
    target: str
    engine: str
    seq: int
    created: str = ""
    origin: str = ""
    note: str = ""
    problem: str = ""
    overtaken: bool = False

    @property
    def place(self) -> tuple[str, str]:
        """What a lockfile has one entry of: model and target."""
        return self.model, self.target

    def told(self) -> str:
        """Return why it cannot be served, in one line."""
        name = f"{self.model} on {self.target}" if self.model else "an engine without a record"
        return f"{name} (engine {self.engine[:12]}): {self.problem}"


class Wanted(Value, frozen=True, kw_only=True):
    """What is to be locked: these engines, or all that is signed where none is named.

    Engines that are named are pinned as ``model``, where it is not empty, and all others under
    the name that they were built under. Entries of the models in ``drop`` are left out.
    """

    engines: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    model: str = ""


class Locked(Value, frozen=True, kw_only=True):
    """The lock to write, its entries that were looked at, and what was refused beside them."""

    lock: Lock
    entries: tuple[Checked, ...]
    refused: tuple[Checked, ...] = ()


def lock(store: Store, path: Path, wanted: Wanted, policy: Policy) -> Locked:
    """Return the lock to write to ``path``, where one may be already.

    With engines the entries of these change. Without, all that is signed is looked at, and the
    newest release of each model and target that ``policy`` admits is pinned. An entry that
    would go, or go back to an older release, stays if it can still be served. Engines follow
    each other if they are of one origin: others of the same name are listed as refused where
    one is pinned already.

    Raises:
        UsageError: a name means nothing, an unsigned engine's recipe has none, or engines of
            two origins have one name and none of them is pinned.
        TrustError: a named engine or an entry that was not dropped is refused, nothing is
            left to pin, or the file there is no lockfile.
    """
    before = trust_files.load_lock(path) if os.path.lexists(path) else Lock()
    unknown = [model for model in wanted.drop if model not in before.engines]
    if unknown:
        raise UsageError(
            f"--drop {unknown[0]!r}: {path} pins no such model. It pins "
            f"{', '.join(sorted(before.engines)) or 'nothing'}"
        )
    kept = before.without(wanted.drop)
    if wanted.engines:
        done = _with_named(store, kept, wanted, policy)
    else:
        done = _with_all(store, kept, wanted.drop, policy)
    if not done.lock.engines and not wanted.drop:
        raise _nothing(path, done)
    return done


def check(store: Store, path: Path, policy: Policy) -> tuple[Checked, ...]:
    """Return every entry of a lockfile with the reason why it cannot be served, if any.

    Raises:
        TrustError: T02, the file cannot be used, or pins nothing.
    """
    pins = trust_files.load_lock(path).pins()
    if not pins:
        raise wrong_lock(str(path), "it pins nothing")
    return tuple(_checked(store, pin, policy) for pin in pins)


def _with_named(store: Store, before: Lock, wanted: Wanted, policy: Policy) -> Locked:
    """Return ``before`` with the entries of the engines that were named."""
    found: dict[tuple[str, str], Checked] = {}
    for name in wanted.engines:
        each = _admitted(store, name, policy, wanted.model)
        if each.place in found:
            raise UsageError(
                f"two engines were named for {each.model!r} on {each.target}: "
                f"{found[each.place].engine[:12]} and {each.engine[:12]}. Name one"
            )
        found[each.place] = each
    return Locked(lock=_pinned(before, found), entries=_sorted(found))


def _with_all(store: Store, before: Lock, drop: tuple[str, ...], policy: Policy) -> Locked:
    """Return the newest of all that is signed, with what is still good of ``before``."""
    admitted: dict[tuple[str, str], list[Checked]] = {}
    refused: list[Checked] = []
    for sha256 in signed_subjects(store):
        try:
            each = _admitted(store, sha256, policy, "")
        except TrtbuildError as error:
            refused.append(_refused(store, sha256, error))
            continue
        if each.model in drop or not each.seq:
            continue
        admitted.setdefault(each.place, []).append(each)
    pinned = {(pin.model, pin.target): _checked(store, pin, policy) for pin in before.pins()}
    newest: dict[tuple[str, str], Checked] = {}
    for place, found in admitted.items():
        followers, strangers = _of_one_origin(found, pinned.get(place))
        refused += strangers
        if followers:
            newest[place] = max(followers, key=lambda each: each.seq)
    lost = []
    for place, entry in pinned.items():
        if place not in newest or newest[place].seq < entry.seq:
            newest[place] = entry
            if entry.problem:
                lost.append(entry)
    if lost:
        raise _would_lose(lost)
    # What an admitted engine has overtaken is history, and no surprise.
    news = [each for each in refused if not _is_history(each, newest.get(each.place))]
    return Locked(lock=_pinned(Lock(), newest), entries=_sorted(newest), refused=tuple(news))


def _is_history(refused: Checked, newest: Checked | None) -> bool:
    """Tell whether an engine is older than the one that is pinned in its place, or was left."""
    return newest is not None and (refused.overtaken or newest.created >= refused.created)


def _of_one_origin(
    found: list[Checked], pinned: Checked | None
) -> tuple[list[Checked], list[Checked]]:
    """Return the engines of a place that follow what is pinned, and those that do not.

    Two models may have files of one name, one model has engines in several precisions: which
    of them a service asks for by the name, only a person knows.

    Raises:
        UsageError: they are of two origins, and none of them is pinned.
    """
    if pinned is not None and pinned.origin:
        problem = (
            f"it is another engine of that name than the one that is pinned, {pinned.origin}: "
            f"to pin it in its place, name it (trtbuild lock ENGINE)"
        )
        strangers = [
            msgspec.structs.replace(each, problem=f"{each.origin}: {problem}")
            for each in found
            if each.origin != pinned.origin
        ]
        return [each for each in found if each.origin == pinned.origin], strangers
    first, *others = sorted(found, key=lambda each: each.engine)
    for other in others:
        if other.origin != first.origin:
            raise UsageError(
                f"two engines are called {first.model!r} on {first.target}: "
                f"{first.engine[:12]} is {first.origin}, {other.engine[:12]} is "
                f"{other.origin}. Name the one to pin (trtbuild lock ENGINE), or give their "
                f"recipes two names"
            )
    return found, []


def _origin(manifest: Manifest) -> str:
    """Return what an engine was built of: its precision, and its source as the recipe says it.

    Not the source's digest: a model that was trained on follows the one before it. Of the
    folder only the name counts, so that a checkout in another place is no other model.
    """
    try:
        where = msgspec.json.decode(manifest.recipe, type=_Where)
    except msgspec.MsgspecError:
        return manifest.precision_requested
    named = ", ".join(f"{key} {value}" for key, value in sorted(where.source.items()) if value)
    return f"{manifest.precision_requested} of {named} in {PurePath(where.folder).name}"


class _Where(msgspec.Struct):
    """What of a recipe's JSON says where its model is; the rest is not looked at."""

    source: dict[str, object]
    folder: str


def _pinned(before: Lock, found: dict[tuple[str, str], Checked]) -> Lock:
    result = before
    for each in found.values():
        pin = Pin(model=each.model, target=each.target, engine=each.engine, seq=each.seq)
        result = result.with_pin(pin)
    return result


def _sorted(found: dict[tuple[str, str], Checked]) -> tuple[Checked, ...]:
    return tuple(found[place] for place in sorted(found))


def _would_lose(lost: list[Checked]) -> TrustError:
    lines = "".join(f"\n  {each.told()}" for each in lost)
    return TrustError(
        f"the lockfile was left as it is, since {len(lost)} of its entries cannot be served:"
        f"{lines}\nMend that, pin another engine (trtbuild lock ENGINE), or take the model out "
        f"on purpose: trtbuild lock --drop {lost[0].model}"
    )


def _nothing(path: Path, done: Locked) -> TrustError:
    lines = "".join(f"\n  {each.told()}" for each in done.refused) or " nothing is signed here"
    return TrustError(
        f"{path} was not written, since there is nothing to pin:{lines}\nSign an engine, name "
        f"an unsigned one (trtbuild lock ENGINE), or another --store"
    )


def _checked(store: Store, pin: Pin, policy: Policy) -> Checked:
    """Return an entry, with the reason why it cannot be served, if any."""
    entry = Checked(model=pin.model, target=pin.target, engine=pin.engine, seq=pin.seq)
    try:
        record = find_engine(store, pin.engine)
        admission = judge(store, record, pin, policy)
        store.verified_path(pin.engine)
    except TrtbuildError as error:
        return msgspec.structs.replace(entry, problem=str(error))
    names = ", ".join((*admission.builders, *admission.promoters))
    manifest = record.read(Manifest)
    return msgspec.structs.replace(
        entry,
        created=manifest.created,
        origin=_origin(manifest),
        note=f"signed by {names}" if admission.signed else "unsigned",
    )


def _refused(store: Store, sha256: str, error: TrtbuildError) -> Checked:
    """Return a signed engine that is not admitted, by its recipe's name where it is known."""
    found = Checked(model="", target="", engine=sha256, seq=0, problem=str(error))
    try:
        manifest = find_engine(store, sha256).read(Manifest)
    except TrtbuildError:  # statements without an engine: the reason says so
        return found
    return msgspec.structs.replace(
        found,
        model=recipe_name(manifest.recipe),
        target=str(manifest.preimage.target),
        created=manifest.created,
        overtaken=isinstance(error, TrustError) and error.code == "T06",
    )


def _admitted(store: Store, name: str, policy: Policy, model: str) -> Checked:
    record = find_engine(store, name)
    manifest = record.read(Manifest)
    admission = judge(store, record, None, policy, model)
    names = ", ".join((*admission.builders, *admission.promoters))
    return Checked(
        model=admission.model if admission.signed else _recipe_name(manifest),
        target=admission.target,
        engine=manifest.sha256,
        seq=admission.seq,
        created=manifest.created,
        origin=_origin(manifest),
        note=f"signed by {names}" if admission.signed else "unsigned",
    )


def _recipe_name(manifest: Manifest) -> str:
    name = recipe_name(manifest.recipe)
    if not name:
        raise UsageError(
            f"engine {manifest.sha256[:12]} is unsigned and names no recipe: sign it, so that "
            f"it has a model's name"
        )
    return name
