"""Data is split, cut, checked and hashed; everything wrong with it is told where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trtbuild.engine import TensorSpec
from trtbuild.errors import DataError
from trtbuild.sources.checks import checked, data_digest
from trtbuild.sources.provider import load_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy.typing as npt

    from trtbuild.batches import Batch

INPUTS = (
    TensorSpec(name="images", dtype="float32", shape=("batch", 3)),
    TensorSpec(name="mask", dtype="int64", shape=("batch",)),
)

GOOD = """
import numpy as np

METRIC_NAME = "top-1"


def calibration_batches():
    yield {"images": np.zeros((2, 3), np.float32), "mask": np.zeros(2, np.int64)}


def evaluation_batches():
    images, mask = np.ones((2, 3), np.float32), np.ones(2, np.int64)
    yield {"images": images, "mask": mask, "label": np.zeros(2)}


def metric(outputs, batch):
    return outputs["scores"] == batch["label"]
"""


def fitting() -> dict[str, npt.NDArray[Any]]:
    return {"images": np.zeros((2, 3), np.float32), "mask": np.zeros(2, np.int64)}


def join(batches: Iterable[Batch], name: str) -> list[Any]:
    return [value for batch in batches for value in batch[name].tolist()]


def test_a_provider_file_gives_batches_and_metric(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(GOOD)
    provider = load_provider("data.py", tmp_path, None)
    assert provider.metric is not None
    assert (provider.metric.name, provider.metric.higher_is_better) == ("top-1", True)
    evaluation = list(provider.evaluation_batches())
    scores = provider.metric.score({"scores": np.array([0.0, 5.0])}, evaluation[0])
    assert scores.tolist() == [1.0, 0.0]
    assert list(checked(evaluation, INPUTS, "data.py", "evaluation_batches")) == evaluation


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_plain_data_is_split_in_order_and_cut_into_eights(kind: str, tmp_path: Path) -> None:
    values = np.arange(50, dtype=np.float32)
    if kind == "npz":
        np.savez(tmp_path / "data.npz", x=values, y=-values)
    else:
        (tmp_path / "data").mkdir()
        np.save(tmp_path / "data" / "x.npy", values)
        np.save(tmp_path / "data" / "y.npy", -values)
    spec = "data.npz" if kind == "npz" else "data"
    provider = load_provider(spec, tmp_path, None)
    calibration = list(provider.calibration_batches())
    assert [len(part["x"]) for part in calibration] == [8, 8, 8, 8, 8]
    assert join(calibration, "x") == list(range(40))
    assert join(provider.evaluation_batches(), "y") == [-n for n in range(40, 50)]
    assert provider.metric is None


def test_other_data_for_the_evaluation_leaves_all_of_the_first_to_calibration(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "first.npz", x=np.arange(10))
    np.savez(tmp_path / "second.npz", x=np.arange(10, 13))
    provider = load_provider("first.npz", tmp_path, "second.npz")
    assert join(provider.calibration_batches(), "x") == list(range(10))
    assert join(provider.evaluation_batches(), "x") == [10, 11, 12]


def test_two_samples_are_one_for_each_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(2))
    provider = load_provider("data.npz", tmp_path, None)
    assert join(provider.calibration_batches(), "x") == [0]
    assert join(provider.evaluation_batches(), "x") == [1]


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("def calibration_batches(): return []", ["data.py", "evaluation_batches()"]),
        ("raise OSError('disk')", ["data.py", "OSError: disk", "line 1"]),
        (GOOD + "\nMETRIC_NAME = 3\n", ["data.py", "METRIC_NAME"]),
    ],
)
def test_a_provider_file_that_is_wrong_is_a_data_error(
    code: str, parts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data.py").write_text(code)
    with pytest.raises(DataError) as caught:
        load_provider("data.py", tmp_path, None)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("yield {'x': np.zeros(1)}; raise KeyError('lost')", ["batch 1", "KeyError", "line"]),
        ("return 3", ["batch 0", "TypeError"]),
        ("raise ValueError('early')", ["batch 0", "ValueError: early"]),
        ("yield [1]", ["batch 0", "list", "dict"]),
        ("yield {3: np.zeros(1)}", ["batch 0", "3", "text"]),
        ("yield {'x': [1.0]}", ["batch 0", "'x'", "list"]),
    ],
)
def test_batches_that_are_wrong_are_told_with_function_and_number(
    body: str, parts: list[str], tmp_path: Path
) -> None:
    code = GOOD.replace(
        'yield {"images": np.zeros((2, 3)', f'{body}\n    {{"images": np.zeros((2, 3)'
    )
    (tmp_path / "data.py").write_text(code)
    provider = load_provider("data.py", tmp_path, None)
    with pytest.raises(DataError) as caught:
        list(provider.calibration_batches())
    for part in ("data.py", "calibration_batches", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("return outputs['nothing']", "The outputs are scores, more; the batch has label"),
        ("return 0.5", "[n]"),
        ("return 'good'", "str"),
    ],
)
def test_a_metric_that_is_wrong_is_a_data_error(body: str, part: str, tmp_path: Path) -> None:
    code = GOOD.replace('return outputs["scores"] == batch["label"]', body)
    (tmp_path / "data.py").write_text(code)
    metric = load_provider("data.py", tmp_path, None).metric
    assert metric is not None
    with pytest.raises(DataError, match=r"data\.py: metric") as caught:
        metric.score({"scores": np.ones(1), "more": np.ones(1)}, {"label": np.ones(1)})
    assert part in str(caught.value)


def test_a_score_that_is_no_number_is_left_to_the_gate(tmp_path: Path) -> None:
    code = GOOD.replace(
        'return outputs["scores"] == batch["label"]', "return np.array([np.nan])"
    )
    (tmp_path / "data.py").write_text(code)
    metric = load_provider("data.py", tmp_path, None).metric
    assert metric is not None
    assert np.isnan(metric.score({}, {})).all()


def text_file(folder: Path) -> str:
    (folder / "data.npz").write_text("no archive")
    return "data.npz"


def cut_file(folder: Path) -> str:
    np.savez(folder / "whole.npz", x=np.zeros(1000))
    (folder / "data.npz").write_bytes((folder / "whole.npz").read_bytes()[:500])
    return "data.npz"


def objects_file(folder: Path) -> str:
    np.savez(folder / "data.npz", x=np.array([{}, {}], dtype=object))
    return "data.npz"


def uneven_file(folder: Path) -> str:
    np.savez(folder / "data.npz", x=np.zeros(3), y=np.zeros(4))
    return "data.npz"


def scalar_file(folder: Path) -> str:
    np.savez(folder / "data.npz", x=np.float32(3))
    return "data.npz"


def single_sample(folder: Path) -> str:
    np.savez(folder / "data.npz", x=np.zeros((1, 3)))
    return "data.npz"


def empty_folder(folder: Path) -> str:
    (folder / "data").mkdir()
    return "data"


def pickled_folder(folder: Path) -> str:
    (folder / "data").mkdir()
    np.save(folder / "data" / "x.npy", np.array([{}], dtype=object))
    return "data"


def missing(folder: Path) -> str:  # noqa: ARG001  the others write there
    return "nothing.npz"


def other_kind(folder: Path) -> str:
    (folder / "data.csv").write_text("1,2")
    return "data.csv"


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (text_file, "cannot be read"),
        (cut_file, "cannot be read"),
        (objects_file, "Python objects"),
        (uneven_file, "'x' has 3, 'y' has 4"),
        (scalar_file, "'x' has no axis"),
        (single_sample, "at least 2"),
        (empty_folder, "no .npy file"),
        (pickled_folder, "Python objects"),
        (missing, "No such file"),
        (other_kind, "not a kind of data"),
    ],
)
def test_plain_data_that_is_wrong_is_a_data_error(
    make: Callable[[Path], str], part: str, tmp_path: Path
) -> None:
    spec = make(tmp_path)
    with pytest.raises(DataError) as caught:
        load_provider(spec, tmp_path, None)
    assert spec in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"images": np.zeros((2, 3))}, ["'images'", "float64", "float32"]),
        ({"images": np.zeros((2, 4), np.float32)}, ["'images'", "[2, 4]", "[batch, 3]"]),
        ({"images": np.zeros(2, np.float32)}, ["'images'", "[2]", "[batch, 3]"]),
        ({"images": np.zeros((0, 3), np.float32)}, ["'images'", "no value"]),
        ({"images": np.full((2, 3), np.nan, np.float32)}, ["'images'", "6 values", "NaN"]),
        ({"mask": np.zeros(3, np.int64)}, ["'images'", "'mask'", "'batch'", "2 and 3"]),
    ],
)
def test_an_array_that_does_not_fit_is_told_with_its_place(
    wrong: dict[str, npt.NDArray[Any]], parts: list[str]
) -> None:
    batches = [fitting(), fitting() | wrong]
    with pytest.raises(DataError) as caught:
        list(checked(batches, INPUTS, "data.py", "calibration_batches"))
    for part in ("data.py", "calibration_batches", "batch 1", *parts):
        assert part in str(caught.value)


def test_an_infinity_is_told_with_its_index() -> None:
    images = np.zeros((2, 3), np.float32)
    images[1, 2] = np.inf
    with pytest.raises(DataError, match=r"first at \[1, 2\]"):
        list(
            checked([fitting() | {"images": images}], INPUTS, "data.py", "calibration_batches")
        )


def test_a_missing_input_is_told_with_what_is_there() -> None:
    with pytest.raises(DataError, match=r"batch 0: input 'images' is missing.*'mask'"):
        list(checked([{"mask": np.zeros(2, np.int64)}], INPUTS, "data.py", "f"))


def test_no_batch_at_all_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"data\.py: calibration_batches yields no batch"):
        list(checked([], INPUTS, "data.py", "calibration_batches"))


def test_batches_are_asked_for_one_at_a_time() -> None:
    asked: list[int] = []

    def batches() -> Iterable[Batch]:
        for number in range(3):
            asked.append(number)
            yield fitting()

    next(checked(batches(), INPUTS, "data.py", "calibration_batches"))
    assert asked == [0]


@pytest.mark.parametrize(
    "other",
    [
        [{"x": np.arange(4, dtype=np.float32) + 1}],
        [{"y": np.arange(4, dtype=np.float32)}],
        [{"x": np.arange(4, dtype=np.float32).reshape(2, 2)}],
        [{"x": np.arange(4, dtype=np.int32)}],
        [{"x": np.arange(2, dtype=np.float32)}, {"x": np.arange(2, 4, dtype=np.float32)}],
        [],
    ],
)
def test_other_data_has_another_digest(other: list[Batch]) -> None:
    values = np.arange(4, dtype=np.float32)
    assert data_digest(other) != data_digest([{"x": values}])


def test_equal_data_has_one_digest_however_it_lies_in_memory() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.asfortranarray(values)
    swapped = values.astype(">f4")
    digests = {data_digest([{"x": array, "y": array}]) for array in (values, turned, swapped)}
    assert len(digests) == 1
    assert data_digest([{"y": values, "x": values}]) in digests
