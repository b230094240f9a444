"""Which key builds sign with: known without reading a key, on the way to a cache hit."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from trtbuild.errors import UsageError

KEY_VARIABLE = "TRTBUILD_SIGNING_KEY"


def config_folder() -> Path:
    """Return the folder of the user's keys and policy."""
    return Path(platformdirs.user_config_path("trtbuild", appauthor=False))


def chosen_key() -> str:
    """Return the name or path of the key that builds sign with, empty where there is none.

    ``TRTBUILD_SIGNING_KEY`` comes first; set to nothing, builds do not sign.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given is not None:
        return given
    try:
        return (config_folder() / "signing-key").read_text("utf-8").strip()
    except OSError:
        return ""


def choose_key(name: str) -> None:
    """Let builds sign with the key ``name`` from now on; raises UsageError if it cannot."""
    path = config_folder() / "signing-key"
    try:
        path.write_text(f"{name}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
