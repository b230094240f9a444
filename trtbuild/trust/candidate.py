"""What is decided about: an engine as the store has it, what pins it, and the outcome."""

from __future__ import annotations

from datetime import datetime

from trtbuild.engine import EngineKey, Value
from trtbuild.trust.policy import Policy
from trtbuild.trust.refusal import SHOWN_DIGITS


class Candidate(Value, frozen=True, kw_only=True):
    """What the store says of an engine; nothing of it is believed until it was signed.

    ``key`` is what the record stands under, ``preimage`` the manifest's. ``manifest_sha256`` is
    of the manifest's canonical JSON, ``model`` is its recipe's name, empty where it has none,
    ``precision`` what it was asked to compute in. ``built_here``: this user built it on this
    machine, with this very manifest.
    """

    sha256: str
    key: str
    manifest_sha256: str
    preimage: EngineKey
    model: str
    precision: str
    built_here: bool

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"engine {self.sha256[:SHOWN_DIGITS]} for {self.preimage.target}"


class Pin(Value, frozen=True, kw_only=True):
    """What a lockfile says of a model on a target; ``seq`` is 0 for an unsigned engine."""

    model: str
    target: str
    engine: str
    seq: int


class Situation(Value, frozen=True, kw_only=True):
    """What a decision depends on beside the engine.

    ``seen`` has the largest ``seq`` that was loaded before, by :attr:`Admission.place`.
    ``damaged`` is how many files of statements lie beside the engine and cannot be read.
    ``model`` is what was asked for, empty where nobody said.
    """

    policy: Policy
    now: datetime
    seen: dict[str, int]
    pin: Pin | None = None
    model: str = ""
    damaged: int = 0

    def wanted(self, candidate: Candidate) -> str:
        """Return the model that a release must be of.

        It is what a lockfile or the caller says, else the name that the engine was built
        under: never what a release says of itself, which would choose its own rule.
        """
        return (self.pin.model if self.pin else self.model) or candidate.model


class Admission(Value, frozen=True, kw_only=True):
    """That an engine may be loaded, and why.

    ``model``, ``seq`` and ``expires`` are the release's; they are empty and 0 where the engine
    is unsigned. ``keys`` are the ids of those whose signatures made it count, promoters before
    builders. ``ignored`` says what lies beside it and did not count.
    """

    signed: bool
    model: str = ""
    target: str = ""
    precision: str = ""
    seq: int = 0
    expires: str = ""
    builders: tuple[str, ...] = ()
    promoters: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Under what the ``seq`` is remembered: engines that follow each other share it."""
        return f"{self.model}/{self.target}/{self.precision}"
