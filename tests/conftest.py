"""What every test gets: a store of its own, and only tests whose frameworks are installed."""

from __future__ import annotations

import importlib.util
import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FRAMEWORKS = ("torch", "sklearn", "skimage", "tokenizers")
_MISSING = [name for name in _FRAMEWORKS if importlib.util.find_spec(name) is None]
_MODULE_MARK = "pytestmark = pytest.mark.frameworks"

# A shell ignores SIGINT in background jobs; processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a busy machine is not a failure. The same examples in every run: a red build
# must be red for everyone.
hypothesis.settings.register_profile("trtbuild", deadline=None, derandomize=True)
hypothesis.settings.load_profile("trtbuild")


def pytest_report_header() -> str:
    return f"frameworks missing here: {', '.join(_MISSING) or 'none'}"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out modules marked ``frameworks`` as a whole: they cannot even be imported."""
    if not _MISSING or collection_path.suffix != ".py":
        return None
    return True if _MODULE_MARK in collection_path.read_text().splitlines() else None


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests, and the processes that they start, out of the user's own folders.

    What fixtures of a module or session build counts as built here for its tests, too.
    """
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRTBUILD_STORE", str(folder / "store"))
        patch.setenv("TRTBUILD_STATE", str(folder / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("TRTBUILD_POLICY", "TRTBUILD_SIGNING_KEY"):
            patch.delenv(name, raising=False)
        yield
