"""A model of a hub's snapshot as plain files: its data are links, which checkers refuse."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # no stubs

from trtbuild.errors import SourceError
from trtbuild.graph.content import external_locations, open_regular
from trtbuild.graph.snapshots import blobs_of, is_blob

if TYPE_CHECKING:
    from typing import BinaryIO

_COPY_BYTES = 8 << 20


def plain(path: Path, folder: Path) -> Path:
    """Return ``path``, or a copy below ``folder`` of a snapshot's model with external data.

    Raises:
        SourceError: the model or its data cannot be read.
    """
    if blobs_of(path) is None:
        return path
    try:
        with open_regular(path) as file:
            data = file.read()
        locations = external_locations(onnx.load_model_from_string(data))
        if not any(is_blob(each, path) for each in locations):
            return path
        copy = Path(tempfile.mkdtemp(dir=folder)) / path.name
        copy.write_bytes(data)
        for location in locations:
            _copy(path, location, copy.parent)
    except DecodeError:
        return path  # whoever reads it says so
    except (OSError, ValueError) as error:  # ValueError: a NUL in a location
        reason = getattr(error, "strerror", None) or error
        raise SourceError(
            f"{path}: its external data cannot be read: {reason}. Download the model again"
        ) from error
    return copy


def _copy(model: Path, location: str, folder: Path) -> None:
    if not is_blob(location, model):
        raise SourceError(
            f"{model}: external data {location!r} is not among the blobs of its repository; "
            "download the model again, or put plain files in a folder of their own"
        )
    target = folder / location
    target.parent.mkdir(parents=True, exist_ok=True)
    with _opened((model.parent / location).resolve()) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, _COPY_BYTES)


def _opened(blob: Path) -> BinaryIO:
    """Open a blob: a regular file with one name, so that it is nobody else's."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(blob, flags), "rb")
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no regular file of one name", str(blob))
