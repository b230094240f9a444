"""Gives an engine other weights without building it: all of them, or it says which are missing.

Refits that were incomplete have computed with stale weights and no error: TensorRT-RTX does not
count as missing what was never given (pytorch/TensorRT 4198). So every refittable weight must
have been given, and every weight that differs must be refittable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from trtbuild.backends.trt_api import Api

    Source = Callable[[Api, Any], frozenset[str]]
    """Gives a refitter what it has, and returns the names that it gave."""

_SHOWN = 3


class RefusedError(Exception):
    """The engine was not refitted, and must not be used as if it were; the text says why."""


class NoRefitterError(RefusedError):
    """This library cannot refit engines from ONNX."""


def give(
    found: Api,
    loaded: Any,  # noqa: ANN401  untyped bindings
    source: Source,
    changed: Collection[str] = (),
) -> None:
    """Refit the engine ``loaded``, which nobody uses yet, with all weights of ``source``.

    ``changed`` are the weights that differ from those that it has.

    Raises:
        RefusedError: the engine cannot have these weights, or TensorRT did not take all.
        NoRefitterError: the library is a lean runtime.
    """
    trt, messages = found.trt, found.messages
    if not hasattr(trt, "Refitter"):
        raise NoRefitterError("this library cannot refit: install TensorRT itself, not lean")
    if loaded is None:
        raise RefusedError("; ".join(messages.errors) or "TensorRT refuses the engine")
    if not loaded.refittable:
        raise RefusedError("the engine was not built to be refitted")
    messages.errors.clear()
    try:
        refitter = trt.Refitter(loaded, found.logger)
    except TypeError as error:  # the bindings' word for: TensorRT gave none
        raise RefusedError("; ".join(messages.errors) or "TensorRT gave no refitter") from error
    names = frozenset(refitter.get_all_weights())
    reason = fixed(names, changed)
    if reason:
        raise RefusedError(reason)
    given = source(found, refitter)
    reason = incomplete(names, given, refitter.get_missing_weights())
    if reason:
        raise RefusedError(reason)
    if not refitter.refit_cuda_engine() or messages.errors:
        raise RefusedError("; ".join(messages.errors) or "TensorRT refused the weights")


def fixed(refittable: Collection[str], changed: Collection[str]) -> str:
    """Return which changed weights an engine cannot be given, or an empty string."""
    left = sorted(set(changed) - set(refittable))
    if not left:
        return ""
    return f"{_named(left)} differ, and the engine cannot be given them: they are built into it"


def incomplete(
    refittable: Collection[str], given: Collection[str], missing: Collection[str]
) -> str:
    """Return which weights a refit lacks, or an empty string; unnamed ones count too."""
    left = sorted({*missing} | (set(refittable) - set(given)))
    return f"the weights {_named(left)} were not given" if left else ""


def onnx_bytes(model: bytes) -> Source:
    """Return the weights of a serialized ONNX model, which has no data outside of it."""
    return lambda found, refitter: _parsed(
        found, refitter, lambda giver: giver.refit_from_bytes(model)
    )


def onnx_file(path: Path) -> Source:
    """Return the weights of an ONNX file, its external data included."""
    return lambda found, refitter: _parsed(
        found, refitter, lambda giver: giver.refit_from_file(str(path))
    )


def arrays(values: Mapping[str, Any]) -> Source:
    """Return weights by name, for versions before 10, which refit from no ONNX.

    A name that is not in ``values`` stays without weights, which :func:`give` refuses: the
    parser of those versions names some weights by itself (NVIDIA/TensorRT 4299).
    """

    def set_all(found: Api, refitter: Any) -> frozenset[str]:  # noqa: ANN401  untyped bindings
        known = [name for name in refitter.get_all_weights() if name in values]
        return frozenset(
            name
            for name in known
            if refitter.set_named_weights(name, found.trt.Weights(values[name]))
        )

    return set_all


def stored(found: Api, loaded: Any, *, exclude_lean: bool) -> bytes:  # noqa: ANN401  untyped bindings
    """Return the bytes of a refitted engine, weights in it, as refittable as it was."""
    trt = found.trt
    if not hasattr(trt, "SerializationFlag"):
        return bytes(loaded.serialize())
    flags = trt.SerializationFlag.__members__
    wanted = {
        "EXCLUDE_WEIGHTS": False,
        "EXCLUDE_LEAN_RUNTIME": exclude_lean,
        "INCLUDE_REFIT": True,
    }
    config = loaded.create_serialization_config()
    for name, on in wanted.items():
        if name in flags:
            (config.set_flag if on else config.clear_flag)(flags[name])
            if config.get_flag(flags[name]) != on:
                raise RefusedError(f"TensorRT did not take {name} = {on}")
    return bytes(loaded.serialize_with_config(config))


def _parsed(
    found: Api,
    refitter: Any,  # noqa: ANN401  untyped bindings
    read: Callable[[Any], bool],
) -> frozenset[str]:
    """Let TensorRT's parser give the weights; it knows those that it makes of several."""
    if not hasattr(found.trt, "OnnxParserRefitter"):
        raise NoRefitterError("this library has no OnnxParserRefitter: install TensorRT 10")
    messages = found.messages
    giver = found.trt.OnnxParserRefitter(refitter, found.logger)
    accepted = read(giver)
    reasons = [giver.get_error(index).desc() for index in range(giver.num_errors)]
    if not accepted or reasons:
        said = "; ".join(reasons or messages.errors)
        raise RefusedError(f"TensorRT's parser did not give all weights: {said}")
    given = frozenset(name for name in refitter.get_all_weights() if _is_given(refitter, name))
    messages.errors.clear()  # one for each that was not given
    return given


def _is_given(refitter: Any, name: str) -> bool:  # noqa: ANN401  untyped bindings
    weights = refitter.get_named_weights(name)
    return weights is not None and bool(getattr(weights, "size", 0))


def _named(names: Collection[str]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return shown + more
