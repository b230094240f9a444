"""A tier in an object store: S3 and what speaks it, Google Cloud Storage, Azure.

Put-if-absent is ``If-None-Match: *`` (``ifGenerationMatch=0`` on Google Cloud), a lease is
replaced with ``If-Match``; the library is obstore, which retries with backoff by itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from trtbuild.errors import UsageError
from trtbuild.store.tiers.address import check_endpoint
from trtbuild.store.tiers.tier import (
    CONNECT_S,
    LOOKUP_S,
    PART_BYTES,
    PART_S,
    NoAnswerError,
    TierError,
    Version,
    too_large,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import AzureStore, GCSStore, S3Store

    _Store = S3Store | GCSStore | AzureStore

    from trtbuild.store.tiers.address import Address
    from trtbuild.store.tiers.tier import Upload

_ABSENT = (FileNotFoundError,)
_DENIED_ERRORS = (PermissionDeniedError, UnauthenticatedError, PermissionError)
_REFUSED = (AlreadyExistsError, FileExistsError, PreconditionError)
_LEASE_LIMIT_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_TRIES = 3
_FIRST_PAUSE_S = 0.2
_SHOWN_CHARACTERS = 300
_DENIED = re.compile(r"\b(?:401 Unauthorized|403 Forbidden)\b")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not")
_METADATA = ("169.254.", "/latest/api/token", "/security-credentials", "/computeMetadata/")
"""Where the library asks for credentials when the environment has none."""

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the machine",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or a managed identity",
}


@dataclass(frozen=True, kw_only=True)
class ObjectTier:
    """Objects below a prefix of a bucket or container.

    Small questions go to ``lookup``, parts of large objects to ``bulk``, which waits longer.
    """

    uri: str
    lookup: _Store
    bulk: _Store
    has_leases: bool = True

    def get(self, name: str, limit_bytes: int) -> Iterator[bytes] | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        if limit_bytes == 0:
            return None if self.size(name) is None else iter(())
        with self._explained(name):
            try:
                store = self.bulk if name.startswith("v1/cas/") else self.lookup
                found = obstore.get(store, name, options={"range": (0, PART_BYTES)})
            except _ABSENT as error:
                self._require_bucket(error)
                return None
            if found.meta["size"] > limit_bytes:
                raise too_large(self.uri, name, limit_bytes)
        return self._parts(name, found)

    def size(self, name: str) -> int | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained(name):
            try:
                return obstore.head(self.lookup, name)["size"]
            except _ABSENT:
                return None

    def put_new(self, upload: Upload) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`; a conditional put is one request."""
        with self._explained(upload.name):
            return self._put(self.bulk, upload.name, upload.data, "create")

    def replace(self, upload: Upload, seen: bytes) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained(upload.name):
            try:
                found = obstore.get(self.bulk, upload.name)
            except _ABSENT:
                return self._put(self.bulk, upload.name, upload.data, "create")
            if found.meta["size"] != len(seen) or bytes(found.bytes()) != seen:
                return False
            mode = _if_same(found.meta["e_tag"], found.meta["version"])
            return self._put(self.bulk, upload.name, upload.data, mode)

    def names(self, prefix: str) -> list[str]:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        folder = prefix[: prefix.rfind("/") + 1].rstrip("/")
        with self._explained(prefix):
            try:
                pages = list(obstore.list(self.lookup, prefix=folder))
            except _ABSENT as error:
                self._require_bucket(error)
                return []
        found = (meta["path"] for page in pages for meta in page)
        return sorted(name for name in found if name.startswith(prefix))

    def peek(self, name: str) -> Version | None:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained(name):
            try:
                found = obstore.get(self.lookup, name)
            except _ABSENT as error:
                self._require_bucket(error)
                return None
            if found.meta["size"] > _LEASE_LIMIT_BYTES:
                raise too_large(self.uri, name, _LEASE_LIMIT_BYTES)
            tag = f"{found.meta['e_tag'] or ''}\n{found.meta['version'] or ''}"
            return Version(data=bytes(found.bytes()), tag=tag)

    def swap(self, name: str, data: bytes, seen: Version | None) -> bool:
        """See :class:`trtbuild.store.tiers.tier.Tier`."""
        with self._explained(name):
            mode: obstore.PutMode = "create"
            if seen is not None:
                tag, _, version = seen.tag.partition("\n")
                mode = _if_same(tag, version)
            if self._put(self.lookup, name, data, mode) and seen is None:
                return True
        # What counts is what is there now: an answer may have been lost, and a server that does
        # not know If-Match stores whatever comes.
        now = self.peek(name)
        return now is not None and now.data == data

    def drop(self, name: str, seen: Version) -> None:
        """See :class:`trtbuild.store.tiers.tier.Tier`; obstore has no condition for this."""
        del seen
        with self._explained(name), contextlib.suppress(*_ABSENT):
            obstore.delete(self.lookup, name)

    def _put(self, store: _Store, name: str, data: bytes, mode: obstore.PutMode) -> bool:
        """Put in one request under a condition; False where it does not hold.

        obstore does not repeat a put after a connection that failed, since that could have
        been stored. Then the condition does not hold any more, and callers look what is there.
        """
        for turn in range(_TRIES):
            try:
                obstore.put(store, name, data, mode=mode, use_multipart=False)
            except _REFUSED:  # noqa: PERF203  a network call costs more than the block
                return False
            except GenericError:
                if turn == _TRIES - 1:
                    raise
                time.sleep(_FIRST_PAUSE_S * 2**turn * random.uniform(0.5, 1.5))  # noqa: S311  no secret
            else:
                return True
        raise AssertionError  # the last turn returns or raises

    def _parts(self, name: str, first: obstore.GetResult) -> Iterator[bytes]:
        size_bytes, tag = first.meta["size"], first.meta["e_tag"]
        with self._explained(name):
            done = 0
            for chunk in first.stream(min_chunk_size=_CHUNK_BYTES):
                done += len(chunk)
                yield bytes(chunk)
            while done < size_bytes:
                end = min(done + PART_BYTES, size_bytes)
                options: obstore.GetOptions = {"range": (done, end)}
                if tag:
                    options["if_match"] = tag
                part = bytes(obstore.get(self.bulk, name, options=options).bytes())
                if not part:
                    raise TierError(
                        f"{self.uri}: {name} ends after {done} of {size_bytes} bytes. Try "
                        f"again; if it stays so, delete it there and push it again"
                    )
                done += len(part)
                yield part

    def _require_bucket(self, error: Exception) -> None:
        """A bucket that does not exist is no miss: its cache would never hit, silently."""
        if any(part in str(error) for part in _NO_BUCKET):
            raise self._told("", error) from error

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except TierError:
            raise
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            raise self._told(name, error) from error

    def _told(self, name: str, error: Exception) -> TierError:
        """Return the error with its remedy; listing has no class for what is refused."""
        text = str(error)
        if any(part in text for part in _NO_BUCKET):
            return TierError(
                f"{self.uri}: no such bucket or container. Make it, or correct the URI"
            )
        if any(part in text for part in _METADATA):
            wanted = _CREDENTIALS[self.uri.partition(":")[0]]
            return NoAnswerError(
                f"{self.uri}: there are no credentials for it: neither in the environment nor "
                f"from the machine's metadata service. Give {wanted}"
            )
        if isinstance(error, _DENIED_ERRORS) or _DENIED.search(text):
            return NoAnswerError(
                f"{self.uri}: access to {name} is refused: {_short(error)}. Check the "
                f"credentials in the environment and their rights (reading needs the right to "
                f"list, or S3 refuses what is merely absent)"
            )
        return NoAnswerError(
            f"{self.uri}: {name}: {_short(error)}. Check the network and the URI, or work "
            f"without it (--offline)"
        )


def open_objects(address: Address) -> ObjectTier:
    """Return the tier of an ``s3://``, ``gs://`` or ``az://`` address; nothing is contacted.

    Raises:
        TierError: the URI or the environment's configuration cannot be used.
    """
    scheme = address.scheme
    config = {name: value for name, value in address.options.items() if name == "region"}
    endpoint = address.options.get("endpoint", "") or _endpoint_of(os.environ, scheme)
    if endpoint:
        config["base_url" if scheme == "gs" else "endpoint"] = endpoint
    try:
        lookup, bulk = (
            from_url(
                address.place,
                config=cast("Any", config),
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "connect_timeout": timedelta(seconds=CONNECT_S),
                    "timeout": timedelta(seconds=seconds),
                },
                retry_config={
                    "max_retries": _TRIES - 1,
                    "retry_timeout": timedelta(seconds=seconds),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=1),
                        "base": 2,
                    },
                },
            )
            for seconds in (LOOKUP_S, PART_S)
        )
    except (BaseError, ValueError, TypeError, OSError) as error:
        raise TierError(
            f"{address.shown}: {_short(error)}. Correct the URI or the variables of the "
            f"environment that configure it"
        ) from error
    return ObjectTier(
        uri=address.shown, lookup=cast("S3Store", lookup), bulk=cast("S3Store", bulk)
    )


def _if_same(tag: str | None, version: str | None) -> obstore.PutMode:
    """Return the condition that an object is still this version of it."""
    mode: obstore.UpdateVersion = {}  # the binding takes no None
    if tag:
        mode["e_tag"] = tag
    if version:
        mode["version"] = version
    return mode


def _endpoint_of(environment: os._Environ[str], scheme: str) -> str:
    """Return the endpoint that the environment names for S3, "" where it names none."""
    if scheme != "s3":
        return ""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    name = next((name for name in names if environment.get(name)), "")
    if name:
        try:
            check_endpoint(name, environment[name])
        except UsageError as error:
            raise TierError(str(error)) from error
    return environment.get(name, "")


def _short(error: BaseException) -> str:
    """Return the first line of an error; obstore appends its own source after it."""
    return str(error).partition("\n")[0][:_SHOWN_CHARACTERS].rstrip(". ")
