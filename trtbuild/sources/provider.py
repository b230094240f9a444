"""Calibration and evaluation data: a provider's file, an ``.npz`` or a folder of ``.npy``."""

from __future__ import annotations

import zipfile
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from trtbuild.batches import Metric, Provider
from trtbuild.errors import DataError, SourceError
from trtbuild.sources import absolute
from trtbuild.sources.checks import as_batch
from trtbuild.sources.tracing import note_read
from trtbuild.sources.user_code import load_file, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import ModuleType

    import numpy.typing as npt

    from trtbuild.batches import Array, Batch, Outputs

T = TypeVar("T")

BATCH_SAMPLES = 8
"""Samples in a batch of plain data; a provider's file cuts its own."""

_CALIBRATION_SHARE = 4 / 5

_UNNAMED = "metric"


def load_provider(spec: str, folder: Path, evaluation: str | None) -> Provider:
    """Return the data that ``spec`` names; relative paths start from ``folder``.

    Plain data, samples along axis 0, is split in order: four fifths for calibration and the
    rest for evaluation, unless ``evaluation`` names other data, of which all is evaluated. A
    provider's file may define ``metric(outputs, batch)``, which returns one score per unit,
    shape [n], and beside it ``METRIC_NAME`` and ``METRIC_HIGHER_IS_BETTER`` (true if absent).

    Raises:
        DataError: the data is missing or wrong. What is wrong within a batch is said when the
            batch is asked for.
    """
    first = _load(spec, folder, split=evaluation is None)
    if evaluation is None:
        return first
    second = _load(evaluation, folder, split=False)
    return Provider(
        name=first.name,
        calibration_batches=first.calibration_batches,
        evaluation_batches=second.evaluation_batches,
        metric=second.metric or first.metric,
    )


def _load(spec: str, folder: Path, *, split: bool) -> Provider:
    path = absolute(spec, folder)
    if path.suffix == ".py":
        return _from_code(spec, path)
    arrays = _arrays(spec, path)
    total = _samples(spec, arrays)
    if not split:
        whole = partial(_cut, arrays, 0, total)
        return Provider(
            name=spec, calibration_batches=whole, evaluation_batches=whole, metric=None
        )
    if total < 2:  # noqa: PLR2004  one for each part
        raise DataError(
            f"{spec}: has {total} sample, expected at least 2: four fifths are for "
            "calibration, the rest is for evaluation"
        )
    border = min(max(1, int(total * _CALIBRATION_SHARE)), total - 1)
    return Provider(
        name=spec,
        calibration_batches=partial(_cut, arrays, 0, border),
        evaluation_batches=partial(_cut, arrays, border, total),
        metric=None,
    )


def _from_code(spec: str, path: Path) -> Provider:
    try:
        module = load_file(path)
    except SourceError as error:
        raise DataError(f"provider {spec}: {error}") from error
    for name in ("calibration_batches", "evaluation_batches"):
        if not callable(getattr(module, name, None)):
            raise DataError(
                f"provider {spec}: defines no function {name}(), which yields dicts of arrays "
                "by input name"
            )
    return Provider(
        name=spec,
        calibration_batches=partial(_yielded, module, "calibration_batches", spec, path),
        evaluation_batches=partial(_yielded, module, "evaluation_batches", spec, path),
        metric=_metric(module, spec, path),
    )


def _yielded(module: ModuleType, name: str, spec: str, path: Path) -> Iterator[Batch]:
    """Yield what a user's function yields, its failures told with provider, batch and line."""
    function: Callable[[], Iterable[object]] = getattr(module, name)
    where = f"{spec}: {name}: batch 0"
    iterator = iter(_guarded(partial(_start, function), where, path))
    index = 0
    end = object()
    while True:
        where = f"{spec}: {name}: batch {index}"
        value = _guarded(partial(next, iterator, end), where, path)
        if value is end:
            return
        yield as_batch(value, where)
        index += 1


def _start(function: Callable[[], Iterable[object]]) -> Iterator[object]:
    return iter(function())


def _guarded(action: Callable[[], T], where: str, path: Path) -> T:
    try:
        with running(where, path.parent):
            return action()
    except SourceError as error:
        raise DataError(str(error)) from error.__cause__


def _metric(module: ModuleType, spec: str, path: Path) -> Metric | None:
    function = getattr(module, "metric", None)
    if function is None:
        return None
    name = getattr(module, "METRIC_NAME", _UNNAMED)
    higher = getattr(module, "METRIC_HIGHER_IS_BETTER", True)
    if not callable(function) or not isinstance(name, str) or not isinstance(higher, bool):
        raise DataError(
            f"provider {spec}: expected a function metric(outputs, batch), METRIC_NAME as text "
            "and METRIC_HIGHER_IS_BETTER as True or False"
        )

    def score(outputs: Outputs, batch: Batch) -> npt.NDArray[np.float64]:
        where = f"{spec}: metric"
        try:
            found = _guarded(partial(function, outputs, batch), where, path)
        except DataError as error:
            if not isinstance(error.__cause__, KeyError):
                raise
            raise DataError(
                f"{error}. The outputs are {', '.join(outputs)}; the batch has "
                f"{', '.join(batch)}"
            ) from error.__cause__
        return _scores(found, where)

    return Metric(name=name, higher_is_better=higher, score=score)


def _scores(found: object, where: str) -> npt.NDArray[np.float64]:
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where} returned a {type(found).__name__}, expected an array of scores, one per "
            "unit"
        ) from error
    if scores.ndim != 1:
        raise DataError(
            f"{where} returned the shape {list(scores.shape)}, expected [n]: one score per "
            "unit (sample, pair, query), not their mean"
        )
    return scores


def _arrays(spec: str, path: Path) -> dict[str, Array]:
    if path.is_dir():
        return _folder_arrays(spec, path)
    if path.suffix != ".npz":
        what = (
            "no such file or folder" if not path.exists() else "not a kind of data known here"
        )
        raise DataError(
            f"{spec}: {what}; expected a provider's .py file, an .npz file or a folder of .npy "
            f"files (looked for {path})"
        )
    try:
        # Opened here, since np.load leaves a broken file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{spec}: cannot be read as .npz: {_reason(error)}") from error
    if not arrays:
        raise DataError(f"{spec}: holds no array; expected one per input, by its name")
    return arrays


def _folder_arrays(spec: str, path: Path) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for file in sorted(path.glob("*.npy")):
        note_read(file)
        try:
            arrays[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            message = f"{spec}: {file.name} cannot be read as .npy: {_reason(error)}"
            raise DataError(message) from error
    if not arrays:
        raise DataError(f"{spec}: holds no .npy file; expected one per input, named after it")
    return arrays


def _reason(error: Exception) -> str:
    if "pickle" in str(error).lower():
        return "it holds Python objects or is no NumPy file; save plain arrays with numpy"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _samples(spec: str, arrays: dict[str, Array]) -> int:
    sizes = {name: int(array.shape[0]) if array.ndim else -1 for name, array in arrays.items()}
    if len(set(sizes.values())) != 1 or -1 in sizes.values():
        told = ", ".join(
            f"{name!r} has {'no axis' if size < 0 else size}" for name, size in sizes.items()
        )
        raise DataError(
            f"{spec}: every array must have the same number of samples along axis 0, but {told}"
        )
    return next(iter(sizes.values()))


def _cut(arrays: dict[str, Array], start: int, stop: int) -> Iterator[Batch]:
    for low in range(start, stop, BATCH_SAMPLES):
        high = min(low + BATCH_SAMPLES, stop)
        yield {name: np.ascontiguousarray(array[low:high]) for name, array in arrays.items()}
