from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from polygraphy.comparator import RunResults

from tests.verification import sessions
from trtbuild.verification.outputs import save_outputs

if TYPE_CHECKING:
    from pathlib import Path


def test_polygraphy_reads_what_both_sessions_computed(tmp_path: Path) -> None:
    batch: dict[str, sessions.Array] = {
        "x": np.arange(8, dtype=np.float32).reshape(2, 4),
        "labels": np.zeros(2),
    }
    pair = {
        "framework": sessions.identity(),
        "engine": sessions.elementwise(lambda x: x + np.float32(0.5)),
    }
    save_outputs(pair, batch, tmp_path / "outputs.json")
    found = RunResults.load(str(tmp_path / "outputs.json"))
    assert list(found.keys()) == ["framework", "engine"]
    np.testing.assert_array_equal(found["framework"][0]["y"], batch["x"])
    np.testing.assert_array_equal(found["engine"][0]["y"], batch["x"] + np.float32(0.5))
