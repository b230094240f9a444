"""A tier in an OCI registry: records and statements are tagged artifacts, blobs are blobs.

A tag can be changed by whoever may write (a registry ignores ``If-None-Match`` on it), so tags
are hints: what a record says and what its blobs are is verified by whoever reads them. Leases
do not work here. Every byte is hashed on the way: registries serve damaged files unseen.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

import msgspec

from trtbuild.errors import UsageError
from trtbuild.store.tiers import package
from trtbuild.store.tiers.http import Question, ask
from trtbuild.store.tiers.login import authorization, is_loopback
from trtbuild.store.tiers.tier import NoAnswerError, TierError, bounded, too_large

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.store.tiers.address import Address
    from trtbuild.store.tiers.http import Answer
    from trtbuild.store.tiers.tier import Upload, Version

_OK, _CREATED, _ACCEPTED, _UNAUTHORIZED, _ABSENT = 200, 201, 202, 401, 404
_REPOSITORY = re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
_PAGE_TAGS = 1000
_MAX_PAGES = 10_000
_LIST_BYTES = 64 << 20
_DIGITS_OF_STATEMENT = 56
"""A tag has at most 128 characters: of both digests of a statement these many, 224 bits."""


class _Tags(msgspec.Struct, frozen=True):
    tags: list[str] | None


@dataclass(kw_only=True)
class OciTier:
    """Artifacts in one repository of a registry; ``root`` is ``https://host/v2/repository``."""

    uri: str
    root: str
    host: str
    has_leases: bool = False
    _token: dict[str, str] = field(default_factory=dict)
    _listed: dict[str, bytes | None] = field(default_factory=dict)

    def get(self, name: str, limit_bytes: int) -> Iterator[bytes] | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        if name.startswith("v1/cas/"):
            return self._blob(name, name.rpartition("/")[2], limit_bytes)
        manifest = self._manifest(name)
        if manifest is None:
            return None
        layer = package.unpack(self.uri, name, manifest)
        if layer.size > limit_bytes:
            raise too_large(self.uri, name, limit_bytes)
        embedded = package.inside(self.uri, name, layer)
        if embedded is not None:
            return iter((embedded,))
        chunks = self._blob(name, layer.sha256, layer.size)
        if chunks is None:
            raise TierError(f"{self.uri}: {name}: its first layer is lost. Push it again")
        data = b"".join(chunks)
        if hashlib.sha256(data).hexdigest() != layer.sha256 or len(data) != layer.size:
            raise TierError(
                f"{self.uri}: {name}: the registry's bytes are not those of their digest: not "
                f"used. Its storage is damaged: delete the tag there, and push it again"
            )
        return iter((data,))

    def size(self, name: str) -> int | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        if name.startswith("v1/cas/"):
            answer = self._ask("HEAD", f"/blobs/sha256:{name.rpartition('/')[2]}")
        else:
            answer = self._ask("HEAD", f"/manifests/{tag_of(name)}", accept=True)
        answer.close()
        if answer.status == _ABSENT:
            return None
        if answer.status != _OK:
            raise self._refused(name, answer)
        length = answer.headers.get("content-length", "")
        if not length.isdigit():
            raise TierError(f"{self.uri}: {name}: the registry tells no size")
        return int(length)

    def put_new(self, upload: Upload) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`; for tags only nearly atomic."""
        if self.size(upload.name) is not None:
            return False
        self._put(upload)
        return True

    def replace(self, upload: Upload, seen: bytes) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`; only nearly atomic."""
        chunks = self.get(upload.name, len(seen))
        if chunks is not None and b"".join(chunks) != seen:
            return False
        self._put(upload)
        return True

    def _put(self, upload: Upload) -> None:
        if upload.name.startswith("v1/cas/"):
            self._put_blob(upload.name, upload.name.rpartition("/")[2], upload.data)
            return
        manifest = package.pack(upload.name, upload.data, upload.links)
        for data in (package.EMPTY, upload.data):
            sha256 = hashlib.sha256(data).hexdigest()
            present = self._ask("HEAD", f"/blobs/sha256:{sha256}")
            present.close()
            if present.status != _OK:
                self._put_blob(upload.name, sha256, data)
        answer = self._ask(
            "PUT",
            f"/manifests/{tag_of(upload.name)}",
            body=manifest,
            kind=package.MANIFEST_TYPE,
        )
        if answer.status != _CREATED:
            raise self._refused(upload.name, answer)
        answer.close()

    def names(self, prefix: str) -> list[str]:
        """See :class:`trtbuild.store.tiers.tier.Tier`; of statements those that are sound."""
        found = []
        for tag in self._tags():
            if tag.startswith("att-") and prefix.startswith("v1/att/"):
                if tag.startswith(_statement_tag(prefix)):
                    manifest = self._manifest_of_tag(tag)
                    self._listed[tag] = manifest
                    name = package.title_of(self.uri, manifest) if manifest else ""
                    if name.startswith(prefix) and tag_of(name) == tag:
                        found.append(name)
            elif prefix.startswith("v1/ac/"):
                kind, _, key = tag.rpartition("-")
                name = f"v1/ac/{kind}/{key[:2]}/{key}"
                if name.startswith(prefix):
                    found.append(name)
        return sorted(found)

    def peek(self, name: str) -> Version | None:
        """Refuse: tags cannot be compared and swapped."""
        raise TierError(f"{self.uri}: {name}: a registry has no leases")

    def swap(self, name: str, data: bytes, seen: Version | None) -> bool:
        """Refuse: tags cannot be compared and swapped."""
        del data, seen
        raise TierError(f"{self.uri}: {name}: a registry has no leases")

    def drop(self, name: str, seen: Version) -> None:
        """Refuse: tags cannot be compared and removed."""
        del seen
        raise TierError(f"{self.uri}: {name}: a registry has no leases")

    def _blob(self, name: str, sha256: str, limit_bytes: int) -> Iterator[bytes] | None:
        answer = self._ask("GET", f"/blobs/sha256:{sha256}")
        if answer.status == _ABSENT:
            answer.close()
            return None
        if answer.status != _OK:
            raise self._refused(name, answer)
        if int(answer.headers.get("content-length", "0")) > limit_bytes:
            answer.close()
            raise too_large(self.uri, name, limit_bytes)
        return bounded(self.uri, name, answer.chunks(), limit_bytes)

    def _manifest(self, name: str) -> bytes | None:
        tag = tag_of(name)
        return self._listed.pop(tag, None) or self._manifest_of_tag(tag)

    def _manifest_of_tag(self, tag: str) -> bytes | None:
        answer = self._ask("GET", f"/manifests/{tag}", accept=True)
        if answer.status == _ABSENT:
            answer.close()
            return None
        if answer.status != _OK:
            raise self._refused(tag, answer)
        data = answer.read(package.MAX_MANIFEST_BYTES)
        told = answer.headers.get("docker-content-digest", "")
        if told.startswith("sha256:") and told[7:] != hashlib.sha256(data).hexdigest():
            raise TierError(
                f"{self.uri}: {tag}: the manifest's bytes are not those of the digest that the "
                f"registry tells. Try again; if it stays so, delete the tag and push it again"
            )
        return data

    def _tags(self) -> Iterator[str]:
        where = f"/tags/list?n={_PAGE_TAGS}"
        for _ in range(_MAX_PAGES):
            answer = self._ask("GET", where)
            if answer.status == _ABSENT:  # nothing was ever pushed
                answer.close()
                return
            if answer.status != _OK:
                raise self._refused("tags", answer)
            try:
                page = msgspec.json.decode(answer.read(_LIST_BYTES), type=_Tags)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise TierError(f"{self.uri}: list of tags: {error}") from error
            yield from page.tags or ()
            following = re.search(r'<([^>]+)>;\s*rel="?next"?', answer.headers.get("link", ""))
            if not following:
                return
            query = urlsplit(following[1]).query
            where = f"/tags/list?{query}"

    def _put_blob(self, name: str, sha256: str, data: bytes) -> None:
        begun = self._ask("POST", "/blobs/uploads/")
        begun.close()
        if begun.status != _ACCEPTED or "location" not in begun.headers:
            raise self._refused(name, begun)
        where = urljoin(begun.url, begun.headers["location"])
        if urlsplit(where).netloc != urlsplit(self.root).netloc:
            raise TierError(f"{self.uri}: sends uploads to another host: refused")
        where += f"{'&' if '?' in where else '?'}digest={quote(f'sha256:{sha256}')}"
        done = self._ask("PUT", where, body=data, kind=package.BLOB_LAYER)
        if done.status != _CREATED:
            raise self._refused(name, done)
        done.close()

    def _ask(
        self,
        method: str,
        where: str,
        *,
        body: bytes = b"",
        kind: str = "",
        accept: bool = False,
    ) -> Answer:
        url = where if "://" in where else self.root + where
        headers = {"Accept": package.MANIFEST_TYPE} if accept else {}
        if kind:
            headers["Content-Type"] = kind
        right = "push" if method in ("POST", "PUT") else "pull"
        for _ in range(2):
            token = self._token.get(right) or self._token.get("push", "")
            given = {"Authorization": token} if token else {}
            answer = ask(Question(method=method, url=url, headers=headers | given, body=body))
            challenge = answer.headers.get("www-authenticate", "")
            if answer.status != _UNAUTHORIZED or not challenge:
                return answer
            answer.close()
            self._token[right] = authorization(self.host, challenge)
            if not self._token[right]:
                break
        raise NoAnswerError(
            f"{self.uri}: wants a login that this machine does not have, or refuses the one it "
            f"has. Log in with: docker login {self.host}"
        )

    def _refused(self, name: str, answer: Answer) -> TierError:
        return TierError(
            f"{self.uri}: {name}: {answer.reason()}. Check the name of the repository and your "
            f"rights in it"
        )


def open_oci(address: Address) -> OciTier:
    """Return the tier of an ``oci://`` address; nothing is contacted.

    Raises:
        UsageError: the repository's name is none.
    """
    parts = urlsplit(address.place)
    repository = parts.path.strip("/")
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(
            f"store {address.shown}: expected oci://HOST[:PORT]/REPOSITORY in lower case"
        )
    plain = address.options.get("http", "yes" if is_loopback(parts.netloc) else "no") == "yes"
    root = f"{'http' if plain else 'https'}://{parts.netloc}/v2/{repository}"
    return OciTier(uri=address.shown, root=root, host=parts.netloc)


def tag_of(name: str) -> str:
    """Return the tag of a record, a statement or the index of a blob's parts."""
    _, where, *rest = name.split("/")
    if where == "ac":
        kind, _, key = rest
        return f"{kind}-{key}"
    if where == "parts":
        return f"parts-{rest[-1]}"
    if where == "att":
        return _statement_tag(name)
    message = f"{name}: has no tag"
    raise ValueError(message)


def _statement_tag(name: str) -> str:
    subject, _, sha256 = name.removeprefix("v1/att/").partition("/")
    return f"att-{subject[:_DIGITS_OF_STATEMENT]}-{sha256[:_DIGITS_OF_STATEMENT]}"
