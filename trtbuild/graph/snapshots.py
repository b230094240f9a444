"""Snapshots of a model hub's cache, whose files are links to the blobs of their repository.

    models--OWNER--NAME/blobs/<hash>
    models--OWNER--NAME/snapshots/<revision>/onnx/model.onnx -> ../../../blobs/<hash>

(huggingface_hub, "Understand caching".) Such a link leaves the model's folder, and is followed
all the same where it ends as a file of its own repository's blobs.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

_REPOSITORY = "models--"


def blobs_of(model: Path) -> Path | None:
    """Return the folder of blobs of a model in a snapshot, ``None`` for any other model."""
    absolute = Path(os.path.abspath(model))  # noqa: PTH100  the model itself is a link
    for revision in absolute.parents[:-2]:
        repository = revision.parent.parent
        if revision.parent.name == "snapshots" and repository.name.startswith(_REPOSITORY):
            return repository.resolve() / "blobs"
    return None


def is_blob(location: str, model: Path) -> bool:
    """Tell whether the external data ``location`` of a snapshot's model is a blob beside it."""
    parts = PurePosixPath(location)
    blobs = blobs_of(model)
    if blobs is None or parts.is_absolute() or ".." in parts.parts:
        return False
    return (model.parent / location).resolve().parent == blobs
