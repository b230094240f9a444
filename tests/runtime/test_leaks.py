"""A service calls for months: no call may keep memory. Nightly with 100,000 calls."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np
import pytest

import trtbuild
from tests.pipeline import models
from tests.runtime import simulated
from tests.runtime.test_gpu_session import OnDevice, rows, session
from trtbuild.backends import memory
from trtbuild.backends.session import SessionOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROWTH_BYTES = 4 << 20
WARM = 1000
CALLS = [5000, pytest.param(100_000, marks=pytest.mark.nightly)]


def grown(call: Callable[[int], object], calls: int) -> int:
    """Return how much more memory the process has after ``calls`` than after a few."""

    def repeat(times: int) -> int:
        for number in range(times):
            call(number)
        gc.collect()
        return memory.rss_bytes()

    before = repeat(WARM)
    return repeat(calls) - before


@pytest.mark.parametrize("calls", CALLS)
def test_calls_on_a_processor_keep_nothing(calls: int, tmp_path: Path) -> None:
    recipe = models.with_quantization(
        models.recipe(tmp_path, "onnxruntime"), precision="fp32", provider=None
    )
    engine = trtbuild.build(recipe, tmp_path / "store").engines[0]
    with trtbuild.load(engine.key, str(tmp_path / "store")) as opened:
        x = models.images(1)
        assert grown(lambda _: opened.run({"x": x}), calls) < GROWTH_BYTES
        assert opened.stats.calls >= calls


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_calls_on_a_device_keep_nothing(
    calls: int,
    cuda_graphs: bool,  # noqa: FBT001  a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shapes and addresses that come back, and those that never do."""
    device = simulated.install(monkeypatch)
    with session(device, SessionOptions(cuda_graphs=cuda_graphs)) as opened:
        given = [(OnDevice(device, rows(n)), OnDevice(device, rows(n))) for n in (1, 2, 20)]

        def call(number: int) -> None:
            opened.run({"x": rows(1 + number % 64)})
            x, y = given[number % 3]
            opened.run_device({"x": x}, {"y": y}, stream=number % 2 or None)
            made = opened.run_device({"x": x}, stream=5)["y"]
            np.testing.assert_array_equal(made.numpy(), 2 * x.view)
            if number % 100 == 0:  # what the device notes is no session's
                device.log.clear()
                device.waits.clear()
                for context in list(device._contexts):  # noqa: SLF001  as above
                    if context() is None:
                        device._contexts.remove(context)  # noqa: SLF001  as above

        assert grown(call, calls) < GROWTH_BYTES
