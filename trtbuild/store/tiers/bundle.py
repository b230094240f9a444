"""Records as one file for machines without a network: an OCI image layout in a tar archive.

Its members are ``oci-layout``, ``index.json`` and ``blobs/sha256/<digest>``, as tools for
registries read them; the same records give the same bytes. On the way in nothing is believed:
names, types, sizes and digests are checked, and no path is made of what the archive says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import tarfile
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from trtbuild.canonical import encode
from trtbuild.errors import StoreError, UsageError
from trtbuild.store.record import check_digest, encode_record
from trtbuild.store.statements import statements
from trtbuild.store.tiers import package, transfer
from trtbuild.store.tiers.names import record_name, statement_name
from trtbuild.store.tiers.progress import Progress
from trtbuild.store.tiers.rivals import bring_build
from trtbuild.store.tiers.tier import PART_BYTES, TierError, bounded, too_large

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from typing import IO, BinaryIO

    from trtbuild.store.local import Store
    from trtbuild.store.record import Record
    from trtbuild.store.tiers.tier import Upload, Version

_MEMBER = re.compile(r"oci-layout|index\.json|blobs/sha256/[0-9a-f]{64}")
_LAYOUT = encode({"imageLayoutVersion": "1.0.0"})
_BLOBS = "blobs/sha256/"
_MAX_INDEX_BYTES = 64 << 20
_MAX_MEMBERS = 1_000_000
_REFERENCE = "org.opencontainers.image.ref.name"
_RECORD = re.compile(r"v1/ac/([a-z][a-z0-9-]{0,31})/([0-9a-f]{2})/([0-9a-f]{64})")


class _Index(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """``index.json``, as far as it is read."""

    schema_version: int
    media_type: str
    manifests: list[package.Descriptor]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One blob of the archive: bytes, or a file of the store."""

    size_bytes: int
    source: bytes | Path


def write_bundle(
    store: Store,
    records: Iterable[Record],
    path: Path,
    say: Callable[[str], None] = lambda _text: None,
) -> int:
    """Write ``records`` with their blobs and statements to ``path``; return its size in bytes.

    ``say`` is told how far it is.

    Raises:
        StoreError: a blob is lost or damaged; ``path`` is not made then.
        OSError: ``path`` cannot be written.
    """
    parts: dict[str, _Part] = {}
    manifests = []
    for name, data, record in _packages(store, records):
        for blob in record.blobs if record else ():
            path_of_blob = store.verified_path(blob.sha256)
            parts[blob.sha256] = _Part(size_bytes=blob.bytes, source=path_of_blob)
        manifest = package.pack(name, data, record.blobs if record else ())
        for each in (data, manifest, package.EMPTY):
            digest = hashlib.sha256(each).hexdigest()
            parts[digest] = _Part(size_bytes=len(each), source=each)
        described = package.describe(package.MANIFEST_TYPE, manifest)
        manifests.append(
            msgspec.structs.replace(
                described,
                artifact_type=package.RECORD_TYPE if record else package.STATEMENT_TYPE,
                annotations={_REFERENCE: name},
            )
        )
    manifests.sort(key=lambda manifest: manifest.annotations[_REFERENCE])
    index = encode(_Index(schema_version=2, media_type=package.INDEX_TYPE, manifests=manifests))
    draft = path.with_name(f".{path.name}.part")
    try:
        with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, "oci-layout", _Part(size_bytes=len(_LAYOUT), source=_LAYOUT))
            _add(archive, "index.json", _Part(size_bytes=len(index), source=index))
            total = sum(part.size_bytes for part in parts.values())
            sent = Progress(say, f"export to {path}", total).add
            for digest in sorted(parts):
                _add(archive, f"{_BLOBS}{digest}", parts[digest], sent)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path.stat().st_size


def read_bundle(
    store: Store, path: Path, say: Callable[[str], None] = lambda _text: None
) -> list[Record]:
    """Bring every record of the archive at ``path`` to ``store``; return them.

    ``say`` is told how far it is.

    Raises:
        UsageError: it cannot be read, or is no archive.
        TierError: something in it is not what it says; nothing of that is stored.
        StoreError: the store cannot be written.
    """
    with _opened(path) as bundle:
        records: list[Record] = []
        keys = bundle.record_keys()
        sent = Progress(say, f"import from {path}", path.stat().st_size).add
        for kind, key in keys:
            try:
                there = transfer.fetch_record(bundle, kind, key)
                if there is None or not bring_build(bundle, store, there, sent, say):
                    raise TierError(f"{kind} record {key[:12]} is not whole in it: not used")
                record = store.get(kind, key)
            except StoreError as error:
                text = str(error).removeprefix(f"{path}: ")
                raise TierError(
                    f"{path}: {text}. Of its {len(keys)} records {len(records)} were imported "
                    f"before that and stay; export it again, and import it again for the others"
                ) from error
            if record is not None:
                records.append(record)
        return records


@dataclass(kw_only=True)
class _Bundle:
    """An open archive as a tier that can only be read."""

    uri: str
    archive: tarfile.TarFile
    members: dict[str, tarfile.TarInfo]
    manifests: dict[str, package.Descriptor]
    has_leases: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def record_keys(self) -> list[tuple[str, str]]:
        """Return kind and key of every record, engines before the plans that name them."""
        found = [_RECORD.fullmatch(name) for name in self.manifests]
        return sorted((match[1], match[3]) for match in found if match)

    def get(self, name: str, limit_bytes: int) -> Iterator[bytes] | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        if name.startswith("v1/cas/"):
            return self._blob(name, name.rpartition("/")[2], limit_bytes)
        described = self.manifests.get(name)
        if described is None:
            return None
        manifest = self._sound(name, described, package.MAX_MANIFEST_BYTES)
        layer = package.unpack(self.uri, name, manifest)
        return iter((self._sound(name, layer, limit_bytes),))

    def size(self, name: str) -> int | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        member = self.members.get(_BLOBS + name.rpartition("/")[2])
        return member.size if member else None

    def names(self, prefix: str) -> list[str]:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        return sorted(name for name in self.manifests if name.startswith(prefix))

    def put_new(self, upload: Upload) -> bool:
        """Refuse: an archive is read."""
        raise TierError(f"{self.uri}: {upload.name}: an archive cannot be written to")

    def replace(self, upload: Upload, seen: bytes) -> bool:
        """Refuse: an archive is read."""
        del seen
        return self.put_new(upload)

    def peek(self, name: str) -> Version | None:
        """Refuse: an archive is read."""
        raise TierError(f"{self.uri}: {name}: an archive has no leases")

    def swap(self, name: str, data: bytes, seen: Version | None) -> bool:
        """Refuse: an archive is read."""
        del data, seen
        raise TierError(f"{self.uri}: {name}: an archive has no leases")

    def drop(self, name: str, seen: Version) -> None:
        """Refuse: an archive is read."""
        del seen
        raise TierError(f"{self.uri}: {name}: an archive has no leases")

    def _sound(self, name: str, described: package.Descriptor, limit_bytes: int) -> bytes:
        if described.size > limit_bytes:
            raise too_large(self.uri, name, limit_bytes)
        chunks = self._blob(name, described.sha256, described.size)
        data = b"" if chunks is None else b"".join(chunks)
        if len(data) != described.size or hashlib.sha256(data).hexdigest() != described.sha256:
            raise TierError(
                f"{self.uri}: {name}: blob {described.sha256} in it is missing or has another "
                f"digest: not used. Export it again"
            )
        return data

    def _blob(self, name: str, sha256: str, limit_bytes: int) -> Iterator[bytes] | None:
        member = self.members.get(_BLOBS + check_digest(sha256))
        if member is None:
            return None
        if member.size > limit_bytes:
            raise too_large(self.uri, name, limit_bytes)
        file = self.archive.extractfile(member)
        if file is None:
            return None
        return bounded(self.uri, name, self._read(file), limit_bytes)

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        try:
            while True:
                with self.lock:  # threads share the archive's one position
                    chunk = file.read(PART_BYTES)
                if not chunk:
                    return
                yield chunk
        except (tarfile.TarError, OSError) as error:
            raise TierError(f"{self.uri}: {error}. Copy or export it again") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Bundle]:
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115  closed below, after the loop
    except (OSError, tarfile.TarError) as error:
        raise UsageError(
            f"{path}: no archive of trtbuild cache export: {error}. Give the file it wrote"
        ) from error
    with archive:
        bundle = _Bundle(
            uri=str(path), archive=archive, members=_members(path, archive), manifests={}
        )
        layout = bundle.members.get("oci-layout")
        index = bundle.members.get("index.json")
        if layout is None or index is None or index.size > _MAX_INDEX_BYTES:
            raise UsageError(
                f"{path}: has no oci-layout and index.json: not an archive of trtbuild cache "
                f"export"
            )
        bundle.manifests |= _manifests(path, archive, index)
        yield bundle


def _members(path: Path, archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the files of an archive by name; refuse all but plain files of a layout."""
    found: dict[str, tarfile.TarInfo] = {}
    size_bytes = path.stat().st_size
    try:
        for member in archive:
            if member.isdir() and member.name in ("blobs", "blobs/sha256"):
                continue
            reason = ""
            if not member.isreg() or member.issparse():
                reason = "it is not a plain file"
            elif not _MEMBER.fullmatch(member.name):
                reason = "no such name is in an OCI layout"
            elif member.name in found:
                reason = "it is in it twice"
            elif member.size > size_bytes or len(found) > _MAX_MEMBERS:
                reason = "it is larger than the archive"
            if reason:
                raise TierError(
                    f"{path}: member {member.name!r}: {reason}. The archive was made by "
                    f"something else, or changed: nothing of it was used"
                )
            found[member.name] = member
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise TierError(f"{path}: {error}. Copy or export it again") from error
    return found


def _manifests(
    path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo
) -> dict[str, package.Descriptor]:
    file = archive.extractfile(member)
    try:
        index = msgspec.json.decode(file.read() if file else b"", type=_Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, tarfile.TarError, OSError) as error:
        raise TierError(f"{path}: index.json: {error}. Copy or export it again") from error
    found = {}
    for manifest in index.manifests:
        name = manifest.annotations.get(_REFERENCE, "")
        match = _RECORD.fullmatch(name)
        if name in found or (match and record_name(match[1], match[3]) != name):
            raise TierError(f"{path}: index.json: {name!r} is wrong or there twice: not used")
        found[name] = manifest
    return found


def _packages(
    store: Store, records: Iterable[Record]
) -> Iterator[tuple[str, bytes, Record | None]]:
    """Yield name and bytes of records and of the statements about them."""
    for record in records:
        yield record_name(record.kind, record.key), encode_record(record), record
        for subject in transfer.subjects(record):
            for envelope in statements(store, subject):
                digest = hashlib.sha256(envelope).hexdigest()
                yield statement_name(subject, digest), envelope, None


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """A file as ``tarfile`` reads one, that tells how much was read."""

    file: BinaryIO
    sent: Callable[[int], None]

    def read(self, count: int = -1, /) -> bytes:
        data = self.file.read(count)
        self.sent(len(data))
        return data


def _add(
    archive: tarfile.TarFile,
    name: str,
    part: _Part,
    sent: Callable[[int], None] = lambda _count: None,
) -> None:
    """Add a file whose entry says nothing of this machine or this hour."""
    entry = tarfile.TarInfo(name)
    entry.size = part.size_bytes
    entry.mode = 0o644
    if isinstance(part.source, bytes):
        archive.addfile(entry, io.BytesIO(part.source))
        return
    with part.source.open("rb") as file:
        archive.addfile(entry, _Counted(file=file, sent=sent))
