"""What a refit must have been given; this refitter forgets and refuses as TensorRT can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trtbuild.backends import trt_refit
from trtbuild.backends.trt_log import Messages

if TYPE_CHECKING:
    from trtbuild.backends.trt_api import Api


class Refitter:
    """Two refittable weights; with ``forgets`` it does not count what was never given."""

    def __init__(self, engine: Any, _logger: object) -> None:  # noqa: ANN401  untyped bindings
        self.engine = engine
        self.given: dict[str, Any] = {}

    def get_all_weights(self) -> list[str]:
        return ["bias", "kernel"]

    def get_missing_weights(self) -> list[str]:
        return [] if self.engine.forgets else sorted({"bias", "kernel"} - set(self.given))

    def set_named_weights(self, name: str, weights: object) -> bool:
        self.given[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = dict(self.given)
        return bool(self.engine.takes)


def api() -> Api:
    trt = SimpleNamespace(Refitter=Refitter, Weights=lambda array: array)
    found: Any = SimpleNamespace(trt=trt, logger=None, messages=Messages())
    return found  # type: ignore[no-any-return]  # TensorRT is not here


def engine(*, forgets: bool = False, takes: bool = True, refittable: bool = True) -> Any:  # noqa: ANN401  untyped bindings
    return SimpleNamespace(forgets=forgets, takes=takes, refittable=refittable, weights={})


ALL = {"kernel": np.ones(3), "bias": np.zeros(3), "unused": np.ones(1)}


def test_an_engine_gets_every_weight_that_it_can_be_given() -> None:
    one = engine()
    trt_refit.give(api(), one, trt_refit.arrays(ALL), ("kernel",))
    assert set(one.weights) == {"kernel", "bias"}


@pytest.mark.parametrize("forgets", [True, False])
def test_a_weight_that_was_not_given_is_found_whether_tensorrt_counts_it_or_not(
    *, forgets: bool
) -> None:
    one = engine(forgets=forgets)
    lacking = {"kernel": np.ones(3)}
    with pytest.raises(trt_refit.RefusedError, match="'bias' were not given"):
        trt_refit.give(api(), one, trt_refit.arrays(lacking), ("kernel",))
    assert one.weights == {}


def test_a_changed_weight_that_is_built_in_is_refused_before_anything_is_given() -> None:
    one = engine()
    with pytest.raises(trt_refit.RefusedError, match="'scale' differ"):
        trt_refit.give(api(), one, trt_refit.arrays(ALL), ("kernel", "scale"))
    assert one.weights == {}


def test_what_tensorrt_refuses_is_not_used() -> None:
    for one, words in (
        (engine(refittable=False), "not built to be refitted"),
        (engine(takes=False), "refused the weights"),
        (None, "refuses the engine"),
    ):
        with pytest.raises(trt_refit.RefusedError, match=words):
            trt_refit.give(api(), one, trt_refit.arrays(ALL))
    lean = api()
    del lean.trt.Refitter
    with pytest.raises(trt_refit.NoRefitterError, match="install TensorRT"):
        trt_refit.give(lean, engine(), trt_refit.arrays(ALL))


def test_many_missing_weights_are_counted() -> None:
    assert trt_refit.incomplete("abcde", "", []) == (
        "the weights 'a', 'b', 'c' and 2 more were not given"
    )
    assert trt_refit.incomplete(["a"], ["a"], [""]) == "the weights '' were not given"
    assert trt_refit.incomplete(["a"], ["a"], []) == ""
