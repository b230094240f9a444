"""Makes signed engines, good and forged, for the checks to look at."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trtbuild.canonical import encode
from trtbuild.engine import Manifest
from trtbuild.runtime.admission import candidate_of
from trtbuild.store import Store, make_record
from trtbuild.trust import dsse
from trtbuild.trust.keys import PrivateKey
from trtbuild.trust.statements import second

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.store import Record
    from trtbuild.trust.candidate import Candidate

Doc = dict[str, Any]
MODEL = "classifier"
NOW = datetime.now(timezone.utc)
SEQ = int(NOW.timestamp())


def key(seed: int) -> PrivateKey:
    """Return the same key for the same seed in every run."""
    return PrivateKey(key=Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


BUILDER, PROMOTER, SECOND_PROMOTER = key(1), key(2), key(3)
STRANGER, NARROW = key(4), key(5)
"""No policy knows the one; the other may sign models called ``other-*`` only."""


def table(name: str, who: PrivateKey, role: str, models: str = "*") -> str:
    return (
        f'[[keys]]\nname = "{name}"\nrole = "{role}"\npublic = "{who.public.text}"\n'
        f'models = ["{models}"]\n'
    )


KEYS = (
    table("nightly", BUILDER, "builder")
    + table("release", PROMOTER, "promoter")
    + table("second", SECOND_PROMOTER, "promoter")
    + table("narrow", NARROW, "builder", "other-*")
)
HEAD = 'schema = 1\n[[models]]\nnames = ["*"]\npromoters = 1\n'
POLICY = HEAD + KEYS


@dataclass
class Attempt:
    """One try to have an engine loaded: what lies in the store and on the machine.

    ``made`` are the records that were made on this machine.
    """

    engine: str
    envelopes: list[bytes]
    policy: str = POLICY
    lock: str | None = None
    seen: bytes | None = None
    policy_mode: int = 0o600
    seen_mode: int = 0o600
    model: str = ""
    made: list[Record] = field(default_factory=list)


@dataclass
class Forge:
    """A store of its own with one engine in it, and the statements that a builder signs."""

    store: Store
    record: Record
    candidate: Candidate = field(init=False)
    manifest: Manifest = field(init=False)

    def __post_init__(self) -> None:
        self.use(self.record)

    def use(self, record: Record) -> None:
        """Make statements about another record from now on."""
        self.record = record
        self.manifest = record.read(Manifest)
        self.candidate = candidate_of(record)

    def put(self, manifest: Manifest, data: bytes | None = None) -> str:
        """Store a record of ``manifest``, of other bytes if given, and use it from now on."""
        blobs = self.record.blobs
        if data is not None:
            blobs = (self.store.put_bytes("engine", data),)
            manifest = msgspec.structs.replace(
                manifest, sha256=blobs[0].sha256, bytes=blobs[0].bytes
            )
        name = manifest.preimage.digest
        manifest = msgspec.structs.replace(manifest, key=name)
        self.use(
            self.store.put(make_record("engine", name, manifest.preimage, manifest, blobs))
        )
        return name

    def record_of(self, manifest: Manifest, name: str, data: bytes | None = None) -> Record:
        """Store a record of ``manifest`` under any key, which the manifest has too."""
        blobs = self.record.blobs
        if data is not None:
            blobs = (self.store.put_bytes("engine", data),)
        blob = blobs[0]
        manifest = msgspec.structs.replace(
            manifest, key=name, sha256=blob.sha256, bytes=blob.bytes
        )
        return self.store.put(make_record("engine", name, manifest.preimage, manifest, blobs))

    def with_settings(self, *settings: tuple[str, int | bool | str]) -> str:
        preimage = msgspec.structs.replace(self.manifest.preimage, settings=settings)
        return self.put(msgspec.structs.replace(self.manifest, preimage=preimage))

    def docs(self) -> Doc:
        """Return the three good statements, to be changed; digests are filled in later."""
        candidate = self.candidate
        target = str(candidate.preimage.target)
        parameters = {
            "model": MODEL,
            "target": target,
            "key": candidate.key,
            "preimage": msgspec.to_builtins(candidate.preimage),
        }
        return {
            "provenance": self._statement(
                "https://slsa.dev/provenance/v1",
                {
                    "buildDefinition": {
                        "buildType": "urn:trtbuild:build:v1",
                        "externalParameters": parameters,
                        "internalParameters": {"precision": "int8"},
                        "resolvedDependencies": [
                            {"name": "source", "digest": {"sha256": "a" * 64}}
                        ],
                    },
                    "runDetails": {
                        "builder": {"id": "urn:test:builder", "version": {"trtbuild": "0.1.0"}},
                        "metadata": {"invocationId": "", "finishedOn": second(NOW)},
                    },
                },
            ),
            "gates": self._statement(
                "urn:trtbuild:gates:v1",
                {
                    "report": "b" * 64,
                    "evaluation": "c" * 64,
                    "measuredOn": "device",
                    "passed": True,
                    "gates": [
                        {"name": "max_drop", "passed": True, "skipped": False},
                        {"name": "min_speedup", "passed": True, "skipped": True},
                    ],
                    "metrics": [
                        {"name": "top-1", "reference": 0.9, "engine": 0.9, "drop": 0.0}
                    ],
                },
            ),
            "release": self._statement(
                "urn:trtbuild:release:v1",
                {
                    "model": MODEL,
                    "target": target,
                    "key": candidate.key,
                    "seq": SEQ,
                    "created": second(NOW),
                    "expires": second(NOW + timedelta(days=90)),
                    "provenance": "",
                    "gates": "",
                },
            ),
        }

    def _statement(self, kind: str, predicate: Doc) -> Doc:
        digests = {
            "engine": self.candidate.sha256,
            "manifest": self.candidate.manifest_sha256,
        }
        return {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": n, "digest": {"sha256": d}} for n, d in digests.items()],
            "predicateType": kind,
            "predicate": predicate,
        }

    def payloads(
        self,
        change: Callable[[Doc], object] = lambda _: None,
        spell: Callable[[str, bytes], bytes] = lambda _, payload: payload,
    ) -> dict[str, bytes]:
        """Return the three payloads by name; ``change`` changes values, ``spell`` bytes.

        The release names the others as they are after both, unless it names others already.
        """
        docs = self.docs()
        change(docs)
        found: dict[str, bytes] = {}
        for name in ("provenance", "gates", "release"):
            if name == "release" and isinstance(docs[name]["predicate"], dict):
                for other in ("provenance", "gates"):
                    if docs[name]["predicate"].get(other) == "":
                        digest = hashlib.sha256(found[other]).hexdigest()
                        docs[name]["predicate"][other] = digest
            found[name] = spell(name, encode(docs[name]))
        return found

    def attempt(
        self,
        payloads: dict[str, bytes] | None = None,
        **signers: tuple[PrivateKey, ...],
    ) -> Attempt:
        """Return a try with these payloads, good where none are given, and these signers."""
        payloads = payloads or self.payloads()
        who = {"provenance": (BUILDER,), "gates": (BUILDER,), "release": (PROMOTER,), **signers}
        envelopes = [dsse.seal(payload, who[name]) for name, payload in payloads.items()]
        return Attempt(engine=self.candidate.key, envelopes=envelopes)

    def changed(self, change: Callable[[Doc], object]) -> Attempt:
        """Return a try whose statements were changed before they were signed."""
        return self.attempt(self.payloads(change))

    def respelled(self, name: str, spell: Callable[[bytes], bytes]) -> Attempt:
        """Return a try in which one payload has other bytes, well signed."""
        return self.attempt(
            self.payloads(spell=lambda n, data: spell(data) if n == name else data)
        )


def forge(root: Path) -> Forge:
    """Return the forge of a store with one engine in it, int8 before its baseline."""
    store = Store.open(str(root))
    records = sorted(
        store.records("engine"), key=lambda r: r.read(Manifest).precision_requested != "int8"
    )
    return Forge(store=store, record=records[0])
