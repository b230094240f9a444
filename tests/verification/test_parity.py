from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.verification.sessions import WEIGHT, FunctionSession, elementwise, linear, spec
from trtbuild.errors import DataError, ExportError, SourceError
from trtbuild.verification.parity import check_parity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

X = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)


def framework(weight: npt.NDArray[Any] = WEIGHT) -> FunctionSession:
    return elementwise(lambda x: x @ weight)


def test_a_good_export_agrees_at_every_batch_size(tmp_path: Path) -> None:
    parity = check_parity(
        framework(), linear(tmp_path / "good.onnx"), {"x": X, "labels": X[:, 0]}
    )
    assert [row.batch_size for row in parity.outputs] == [1, 3, 8]
    assert {row.verdict for row in parity.outputs} == {"equal"}
    for row in parity.outputs:
        assert row.scale == np.abs(X[: row.batch_size] @ WEIGHT).max()
        assert row.max_relative == row.max_abs / row.scale
        assert row.max_relative < 1e-5


def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    wrong = WEIGHT.copy()
    wrong[2, 2] += 0.05
    exported = linear(tmp_path / "wrong.onnx", weight=wrong)
    with pytest.raises(ExportError, match=r"output 'y' at batch size 1: max abs difference"):
        check_parity(framework(), exported, {"x": X})


def test_small_outputs_are_judged_by_their_own_scale(tmp_path: Path) -> None:
    tiny = WEIGHT * np.float32(1e-12)
    wrong = linear(tmp_path / "tiny.onnx", weight=tiny * np.float32(1.1))
    with pytest.raises(ExportError, match="max abs difference"):
        check_parity(framework(tiny), wrong, {"x": X})


def test_a_batch_size_that_the_export_baked_in_is_found(tmp_path: Path) -> None:
    exported = linear(tmp_path / "baked.onnx", rows="8")
    with pytest.raises(
        ExportError, match=r"fails at batch size 1, which the original model runs"
    ):
        check_parity(framework(), exported, {"x": X})


def test_a_shape_that_the_export_fixed_is_found() -> None:
    padded = elementwise(lambda x: np.resize(x @ WEIGHT, (8, 4)))
    with pytest.raises(
        ExportError, match=r"batch size 1 has shape \[8, 4\], expected \[1, 4\]"
    ):
        check_parity(framework(), padded, {"x": X})


def test_a_graph_of_fixed_batch_is_compared_at_that_size_only() -> None:
    fixed = FunctionSession(lambda i: {"y": i["x"] @ WEIGHT}, inputs=(spec("x", 8, 4),))
    parity = check_parity(framework(), fixed, {"x": X})
    assert [row.batch_size for row in parity.outputs] == [8]


def test_an_axis_with_the_batch_name_is_cut_wherever_it_lies() -> None:
    inputs = (spec("x", "batch", 4), spec("state", 2, "batch"), spec("rate", 1))
    shapes = []

    def compute(given: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        shapes.append((given["x"].shape[0], given["state"].shape, given["rate"].shape))
        return {"y": given["x"] + given["state"].sum(axis=0)[:, None]}

    session = FunctionSession(compute, inputs=inputs)
    batch = {"x": X, "state": np.ones((2, 8), np.float32), "rate": np.ones(1, np.float32)}
    check_parity(session, session, batch)
    assert shapes[::2] == [(n, (2, n), (1,)) for n in (1, 3, 8)]


def test_zeros_on_both_sides_say_nothing() -> None:
    dead = elementwise(np.zeros_like)
    parity = check_parity(dead, dead, {"x": X})
    assert {row.verdict for row in parity.outputs} == {"says nothing"}
    assert {row.max_relative for row in parity.outputs} == {None}
    with pytest.raises(ExportError, match="against the output's scale 0"):
        check_parity(dead, elementwise(lambda x: np.zeros_like(x) + 1e-9), {"x": X})


def test_nan_on_one_side_is_found() -> None:
    broken = elementwise(lambda x: np.where(x == X[5, 1], np.float32(np.nan), x @ WEIGHT))
    with pytest.raises(ExportError, match="batch size 8: 1 of 32 elements are NaN"):
        check_parity(framework(), broken, {"x": X})


def test_other_output_names_are_found() -> None:
    renamed = FunctionSession(lambda i: {"z": i["x"]}, outputs=(spec("z", "batch", 4),))
    with pytest.raises(ExportError, match=r"outputs \['z'\], the original model \['y'\]"):
        check_parity(framework(), renamed, {"x": X})


def test_a_model_that_fails_by_itself_is_not_the_exports_fault() -> None:
    only_full = elementwise(lambda x: x.reshape(8, 4))
    with pytest.raises(SourceError, match="original model fails at batch size 1: ValueError"):
        check_parity(only_full, framework(), {"x": X})


def test_an_input_that_the_export_dropped_still_reaches_the_framework() -> None:
    both = (spec("x", "batch", 4), spec("unused", "batch"))
    model = FunctionSession(lambda i: {"y": i["x"] @ WEIGHT}, inputs=both)
    parity = check_parity(model, framework(), {"x": X, "unused": X[:, 0]})
    assert len(parity.outputs) == 3
    with pytest.raises(DataError, match="no array 'unused'"):
        check_parity(model, framework(), {"x": X})
