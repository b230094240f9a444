"""The public surface: a name that is added or removed here is a decision, not an accident."""

from __future__ import annotations

import importlib.util
import inspect
from importlib import metadata

import trtbuild
from trtbuild import errors

EXIT_CODES = {
    "BuildError": 4,
    "DataError": 2,
    "ExportError": 4,
    "GateError": 5,
    "MissingBackendError": 3,
    "RecipeError": 2,
    "SourceError": 2,
    "StoreError": 6,
    "TrtbuildError": 1,
    "TrustError": 6,
    "UsageError": 2,
}


def test_the_package_offers_three_doors_the_errors_and_its_version() -> None:
    assert sorted(trtbuild.__all__) == ["__version__", "build", "errors", "load", "verify"]
    for name in ("build", "verify", "load"):
        door = getattr(trtbuild, name)
        assert inspect.isfunction(door)
        assert inspect.getdoc(door)


def test_no_submodule_hides_a_door_once_it_is_imported() -> None:
    for name in ("build", "verify", "load"):
        assert importlib.util.find_spec(f"trtbuild.{name}") is None


def test_the_version_is_that_of_the_installed_package() -> None:
    assert trtbuild.__version__ == metadata.version("trtbuild")


def test_every_error_has_the_exit_code_of_its_remedy() -> None:
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.TrtbuildError)
    }
    assert {name: error.exit_code for name, error in classes.items()} == EXIT_CODES
