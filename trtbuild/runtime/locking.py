"""Make and check lockfiles: which engines a policy admits, for which models and targets."""

from __future__ import annotations

import os
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
from trtbuild.trust.lockfile import Lock

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.store import Store
    from trtbuild.trust.policy import Policy


class Checked(Value, frozen=True, kw_only=True):
    """One entry: what is pinned, who signed it, and why it cannot be served, if so."""

    model: str
    target: str
    engine: str
    seq: int
    note: str = ""
    problem: str = ""


def lock(
    store: Store, path: Path, engines: tuple[str, ...], policy: Policy
) -> tuple[Lock, tuple[Checked, ...]]:
    """Return the lock to write, and its changed entries.

    With ``engines`` the entries of these change. Without, all that is signed is looked at, and
    the newest release of each model and target that ``policy`` admits is pinned.

    Raises:
        UsageError: a name means nothing, or an unsigned engine's recipe has none.
        TrustError: a named engine is refused, or the file there is no lockfile.
    """
    if engines:
        before = trust_files.load_lock(path) if os.path.lexists(path) else Lock()
        found = [_admitted(store, name, policy) for name in engines]
    else:
        before, found = Lock(), _all_signed(store, policy)
    newest: dict[tuple[str, str], Checked] = {}
    for each in found:
        place = (each.model, each.target)
        if place in newest and engines:
            raise UsageError(
                f"two engines were named for {each.model!r} on {each.target}: "
                f"{newest[place].engine[:12]} and {each.engine[:12]}. Name one"
            )
        if place not in newest or newest[place].seq < each.seq:
            newest[place] = each
    result = before
    for each in newest.values():
        pin = Pin(model=each.model, engine=each.engine, seq=each.seq)
        result = result.with_pin(each.target, pin)
    return result, tuple(newest[place] for place in sorted(newest))


def check(store: Store, path: Path, policy: Policy) -> tuple[Checked, ...]:
    """Return every entry of a lockfile with the reason why it cannot be served, if any.

    Raises:
        TrustError: T02, the file cannot be used.
    """
    found = []
    for target, pin in trust_files.load_lock(path).pins():
        entry = Checked(model=pin.model, target=target, engine=pin.engine, seq=pin.seq)
        try:
            record = find_engine(store, pin.engine)
            admission = judge(store, record, pin, policy)
            _expect_target(target, admission.target)
            store.verified_path(pin.engine)
        except TrtbuildError as error:
            found.append(msgspec.structs.replace(entry, problem=str(error)))
        else:
            names = ", ".join((*admission.builders, *admission.promoters))
            note = f"signed by {names}" if admission.signed else "unsigned"
            found.append(msgspec.structs.replace(entry, note=note))
    return tuple(found)


def _expect_target(pinned: str, found: str) -> None:
    if pinned != found:
        raise TrustError(f"the engine is for {found}, it is pinned for {pinned}", "T02")


def _all_signed(store: Store, policy: Policy) -> list[Checked]:
    found = []
    for sha256 in signed_subjects(store):
        try:
            admitted = _admitted(store, sha256, policy)
        except TrtbuildError:  # not ours to serve: another policy's, or its bytes are elsewhere
            continue
        if admitted.seq:
            found.append(admitted)
    return found


def _admitted(store: Store, name: str, policy: Policy) -> Checked:
    record = find_engine(store, name)
    manifest = record.read(Manifest)
    admission = judge(store, record, None, policy)
    names = ", ".join((*admission.builders, *admission.promoters))
    return Checked(
        model=admission.model if admission.signed else _recipe_name(manifest),
        target=admission.target,
        engine=manifest.sha256,
        seq=admission.seq,
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
