"""Remember what user code led to, and notice when anything that it read has changed.

A result of user code cannot be looked up by what it reads before it has run. So a memo is a
chain: the first link, found by the question alone, names files, folders and packages to look
at; their digests lead to the next link, which names more of them or holds the answer. Links are
immutable records, as all records are: when something changes, the chain forks there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import distributions
from trtbuild.canonical import digest, encode
from trtbuild.engine import Manifest, Value
from trtbuild.pipeline.file_digests import file_digest
from trtbuild.sources.dependencies import folder_digest
from trtbuild.store import make_record
from trtbuild.store.counters import Tally, count

if TYPE_CHECKING:
    from trtbuild.sources.dependencies import Dependencies
    from trtbuild.store import Store

_LONGEST = 64
"""Links that are followed; a chain grows by one when user code starts to read other files."""


_NONE = b"null"


class Look(Value, frozen=True, kw_only=True):
    """What to look at next, each sorted; ``engines`` are keys of engines in the store."""

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()


class Link(Value, frozen=True, kw_only=True):
    """One link: what to look at next, or, once everything was looked at, the answer as JSON.

    ``answer`` is JSON's ``null`` where there is none yet.
    """

    look: Look
    answer: msgspec.Raw

    @property
    def answered(self) -> bool:
        """Whether the chain ends here."""
        return bytes(self.answer) != _NONE


def recall(store: Store, question: object) -> msgspec.Raw | None:
    """Return the answer that was remembered for ``question``, None if something changed."""
    key = _first_key(question)
    for _ in range(_LONGEST):
        record = store.get("memo", key, Link)
        if record is None:
            return None
        link = record.read(Link)
        if link.answered:
            return link.answer
        key = _next_key(store, key, link.look)
    return None


def remember(
    store: Store,
    question: object,
    dependencies: Dependencies,
    answer: object,
    engines: tuple[str, ...] = (),
) -> None:
    """Remember ``answer``, which depends on ``question`` and ``dependencies`` only.

    It depends on ``engines`` too, the keys of engines whose bytes it tells of: one that was
    lost and built again may have other bytes, and then has another answer. Nothing is
    remembered when something has changed since it was recorded: the answer may then belong
    to either state.
    """
    if _stale(store, dependencies):
        count(store, Tally(tier="local", kind="memo", outcome="bypass", count=1))
        return
    needed = _look_of(dependencies, engines)
    covered = Look()
    key = _first_key(question)
    for _ in range(_LONGEST):
        complete = _covers(covered, needed)
        link = Link(
            look=Look() if complete else needed,
            answer=msgspec.Raw(encode(answer) if complete else _NONE),
        )
        record = make_record("memo", key, {"question": question}, link)
        stored = store.put(record, Link).read(Link)
        if stored.answered:
            return
        covered = _union(covered, stored.look)
        key = _next_key(store, key, stored.look)


def merged(first: Dependencies, second: Dependencies) -> Dependencies:
    """Return what either depends on; where both name one thing, the second's digest stays."""
    return msgspec.structs.replace(
        first,
        files=tuple({f.path: f for f in (*first.files, *second.files)}.values()),
        folders=tuple({f.path: f for f in (*first.folders, *second.folders)}.values()),
        distributions=tuple(
            {d.name: d for d in (*first.distributions, *second.distributions)}.values()
        ),
    )


def _first_key(question: object) -> str:
    return digest("memo/v1", question)


def _next_key(store: Store, key: str, look: Look) -> str:
    seen = [
        [[path, file_digest(store, path)] for path in look.files],
        [[path, folder_digest(path)] for path in look.folders],
        [[name, distributions.version(name)] for name in look.distributions],
        [[engine, _bytes_of(store, engine)] for engine in look.engines],
    ]
    return digest("memo-link/v1", [key, seen])


def _bytes_of(store: Store, engine: str) -> list[str]:
    record = store.get("engine", engine, Manifest)
    return [blob.sha256 for blob in record.blobs] if record else []


def _stale(store: Store, dependencies: Dependencies) -> bool:
    return any(
        file_digest(store, file.path) != file.sha256 for file in dependencies.files
    ) or any(folder_digest(folder.path) != folder.sha256 for folder in dependencies.folders)


def _look_of(dependencies: Dependencies, engines: tuple[str, ...]) -> Look:
    return Look(
        files=tuple(sorted(file.path for file in dependencies.files)),
        folders=tuple(sorted(folder.path for folder in dependencies.folders)),
        distributions=tuple(sorted(item.name for item in dependencies.distributions)),
        engines=tuple(sorted(engines)),
    )


def _covers(covered: Look, needed: Look) -> bool:
    return (
        set(needed.files) <= set(covered.files)
        and set(needed.folders) <= set(covered.folders)
        and set(needed.distributions) <= set(covered.distributions)
        and set(needed.engines) <= set(covered.engines)
    )


def _union(first: Look, second: Look) -> Look:
    return Look(
        files=tuple(sorted({*first.files, *second.files})),
        folders=tuple(sorted({*first.folders, *second.folders})),
        distributions=tuple(sorted({*first.distributions, *second.distributions})),
        engines=tuple(sorted({*first.engines, *second.engines})),
    )
