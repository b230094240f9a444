"""Every error that trtbuild raises on purpose: one class per remedy, each with its exit code.

A message names the culprit, says what was expected, and says what to do. The command line
prints ``error: MESSAGE`` and leaves with ``exit_code``; a traceback is a bug of ours.
"""

from __future__ import annotations


class TrtbuildError(Exception):
    """Base of all errors with a remedy; never raised itself."""

    exit_code = 1


class UsageError(TrtbuildError):
    """The call is wrong: correct the arguments."""

    exit_code = 2


class RecipeError(TrtbuildError):
    """The recipe is wrong: edit the file, table and key that the message names."""

    exit_code = 2


class SourceError(TrtbuildError):
    """The model file or factory cannot be read: repair or replace it."""

    exit_code = 2


class DataError(TrtbuildError):
    """The data is wrong: correct the provider, batch and tensor that the message names."""

    exit_code = 2


class MissingBackendError(TrtbuildError):
    """Something is not installed or not on this machine: install it, or move."""

    exit_code = 3


class ExportError(TrtbuildError):
    """The framework cannot export the model, or the export computes something else."""

    exit_code = 4


class BuildError(TrtbuildError):
    """The model cannot be built for the target: change the model, the policy or the target."""

    exit_code = 4


class GateError(TrtbuildError):
    """A gate failed: do not deploy."""

    exit_code = 5


class StoreError(TrtbuildError):
    """The store is broken or cannot be used: the message says how to repair it."""

    exit_code = 6


class TrustError(TrtbuildError):
    """The engine is not what it claims, not allowed, or not for this machine: do not load.

    ``code`` names the check that refused it (``T04``; :mod:`trtbuild.trust.refusal` has all)
    and stands before the message; it is empty where no numbered check did.
    """

    exit_code = 6

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code
