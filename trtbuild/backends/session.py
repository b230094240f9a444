"""A loaded engine: what every session offers, and the options it is opened with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from trtbuild.backends import Session
from trtbuild.engine import Value
from trtbuild.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from typing_extensions import Self

    from trtbuild.backends.metrics import Metrics
    from trtbuild.trust.candidate import Admission


class SessionOptions(Value, frozen=True, kw_only=True):
    """How a service wants an engine opened; nothing here changes what it computes.

    ``contexts`` is how many callers it serves at once (0: what its backend takes for right).
    ``cuda_graphs`` lets a GPU replay whole calls where it can. ``weight_budget_mib`` is the
    device memory for the weights of an engine that streams them (0: chosen by TensorRT).
    ``allow_host_code`` lets an engine bring code that runs on this machine's processor.
    ``device`` is a GPU's place in the driver's order (-1: the first that the engine is for).
    """

    contexts: int = 0
    cuda_graphs: bool = True
    weight_budget_mib: int = 0
    allow_host_code: bool = False
    device: int = -1

    def __post_init__(self) -> None:
        """Refuse what can only be a mistake."""
        for name, least in (("contexts", 0), ("weight_budget_mib", 0), ("device", -1)):
            check_count(name, getattr(self, name), least)
        for name in ("cuda_graphs", "allow_host_code"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                message = f"{name} is {value!r}, expected True or False"
                raise UsageError(message)


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of ``least`` or more.

    Raises:
        UsageError: the message has name, value and what was expected.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        message = f"{name} is {value!r}, expected a whole number, {least} or more"
        raise UsageError(message)


DEFAULT = SessionOptions()


class Attached(Value, frozen=True, kw_only=True):
    """What an engine needs beside its own bytes, all of it verified by the caller.

    ``plugins`` are the contents of libraries, whose digests ``plugin_digests``, the setting of
    its key, holds joined by commas. ``weights`` is the network, as ONNX, whose weights an
    engine is given that was stored without them; empty for all others. ``dla_core`` is the
    accelerator of a Jetson that it was built for, -1 for none. ``streams_weights``: it was
    built to hold only some of them on the device.
    """

    plugins: tuple[bytes, ...] = ()
    plugin_digests: str = ""
    weights: bytes = b""
    dla_core: int = -1
    streams_weights: bool = False


NOTHING = Attached()


class Plan(Value, frozen=True, kw_only=True):
    """The bytes of an engine, and of :class:`Attached` what its runtime must be told."""

    engine: bytes
    weights: bytes = b""
    dla_core: int = -1
    streams_weights: bool = False


class LoadedSession(Session, Protocol):
    """A session of an engine that a service holds open, measures, and closes.

    ``admission`` says why :func:`trtbuild.load` let the engine in: ``signed`` or not, the
    model, the release, whose signatures counted. None where something else opened it.
    """

    admission: Admission | None

    @property
    def stats(self) -> Metrics:
        """What the session counts."""

    def metrics(self) -> str:
        """Return what the session counts as Prometheus text."""

    @property
    def host_tensors(self) -> frozenset[str]:
        """The inputs and outputs of :meth:`run_device` that lie on the host: shapes, mostly."""

    def run_device(
        self,
        inputs: Mapping[str, object],
        outputs: Mapping[str, object] = ...,
        stream: int | None = None,
    ) -> dict[str, Any]:
        """Return the outputs as arrays of the device; see ``docs/decisions/0014-runtime.md``.

        Raises:
            UsageError: the engine runs on a processor, or an array does not fit.
        """

    def warm_up(self, inputs: Mapping[str, npt.NDArray[Any]], runs: int) -> None:
        """Run every context ``runs`` times on ``inputs``, making those that are not there."""

    def close(self) -> None:
        """Wait for the calls that run, then free everything; later calls are refused."""

    def __enter__(self) -> Self:
        """Return the session itself."""

    def __exit__(self, *raised: object) -> None:
        """Close the session."""
