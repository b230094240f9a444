"""The profiler of the installed bindings, called as an execution context calls it."""

from __future__ import annotations

from typing import Any

import pytest

from trtbuild.backends.trt_api import api
from trtbuild.backends.trt_profile import layer_ms
from trtbuild.errors import BuildError

pytestmark = pytest.mark.rtx


class Context:
    """Takes a profiler as TensorRT's context does, which exists on a GPU only."""

    enqueue_emits_profile = False
    profiler: Any = None

    def __init__(self, reports: list[list[tuple[str, float]]]) -> None:
        self._reports = iter(reports)

    def execute(self) -> None:
        assert self.enqueue_emits_profile
        for name, spent in next(self._reports):
            self.profiler.report_layer_time(name, spent)


def test_times_are_medians_after_warming_up_and_one_name_is_added_up() -> None:
    warm = [[("conv", 100.0), ("fc", 100.0)]] * 3
    calls = [[("conv", 1.0), ("fc", ms), ("conv", 2.0)] for ms in (9.0, 4.0, 5.0)]
    context = Context(warm + calls)
    found = layer_ms(api("tensorrt-rtx").trt, context, context.execute, 3)
    assert found == {"conv": 3.0, "fc": 5.0}
    assert context.profiler is None


def test_an_engine_that_reports_no_layer_is_an_error_that_says_what_to_do() -> None:
    context = Context([[]] * 4)
    with pytest.raises(BuildError, match="reports no layer of this engine: build it again"):
        layer_ms(api("tensorrt-rtx").trt, context, context.execute, 1)
