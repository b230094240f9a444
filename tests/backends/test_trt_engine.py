"""What an engine of TensorRT is told before its first context, on bindings made here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trtbuild.backends.session import SessionOptions
from trtbuild.backends.trt_engine import Engine
from trtbuild.backends.trt_log import Messages
from trtbuild.errors import MissingBackendError, UsageError

GIB = 1 << 30
_set_weight_budget = Engine._set_weight_budget  # noqa: SLF001  the step that is tested


class Streaming:
    """An engine whose scratch memory is larger while it streams; ``refuses`` all budgets."""

    def __init__(self, weights: int, automatic: int, *, refuses: bool = False) -> None:
        self.streamable_weights_size = weights
        self._automatic = automatic
        self._refuses = refuses
        self._budget = weights

    def get_weight_streaming_automatic_budget(self) -> int:
        return self._automatic

    @property
    def device_memory_size_v2(self) -> int:
        return GIB if self._budget < self.streamable_weights_size else 1

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value: int) -> None:
        if not self._refuses:
            self._budget = value


def budget(fake: Streaming, mib: int = 0, free: int = 16 * GIB) -> int:
    engine = object.__new__(Engine)
    api = SimpleNamespace(messages=Messages())
    vars(engine).update(_engine=fake, _api=api, title="TensorRT 11.4")
    _set_weight_budget(engine, SessionOptions(weight_budget_mib=mib), lambda: free)
    return fake.weight_streaming_budget_v2


@pytest.mark.parametrize(
    ("weights", "automatic", "free", "expected"),
    [
        (GIB, GIB // 2, 16 * GIB, GIB // 2),
        (GIB, -5, 16 * GIB, GIB),
        (40 * GIB, 7, 16 * GIB, 15 * GIB - (256 << 20)),
        (40 * GIB, -7, 100 * GIB, 40 * GIB),
        (40 * GIB, 0, GIB // 2, 0),
    ],
    ids=["told", "negative", "cut", "ample", "none"],
)
def test_the_automatic_budget_is_ours_where_the_bindings_cut_theirs_short(
    weights: int, automatic: int, free: int, expected: int
) -> None:
    assert budget(Streaming(weights, automatic), free=free) == expected


def test_a_budget_of_the_caller_is_set_as_it_is_and_seen_to_be() -> None:
    assert budget(Streaming(40 * GIB, 7), mib=3000) == 3000 << 20
    assert budget(Streaming(GIB, 7), mib=3000) == GIB
    with pytest.raises(MissingBackendError, match=r"did not take a budget of 1048576 bytes"):
        budget(Streaming(40 * GIB, 7, refuses=True), mib=1)
    still: Any = SimpleNamespace(streamable_weights_size=0)
    with pytest.raises(UsageError, match="does not stream its weights"):
        budget(still, mib=1)
