"""Graphs of stages: in the store for everybody, and laid out for the run that asked."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.pipeline import models
from trtbuild.engine import Value
from trtbuild.graph.model import read_graph
from trtbuild.pipeline.context import working
from trtbuild.pipeline.job import quiet
from trtbuild.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context


class Question(Value, frozen=True):
    of: str = "network"


class Detail(Value, frozen=True):
    text: str


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def context(tmp_path: Path, store: Store) -> Iterator[Context]:
    models.classifier(tmp_path / "model.onnx")
    with working(models.recipe(tmp_path), store, quiet) as lent:
        yield lent


def nothing() -> None:
    pass


def asked(
    context: Context, source: Path, meanwhile: Callable[[], object] = nothing
) -> tuple[Graph, str]:
    """Return the graph of the stage, which copies ``source``, and the detail of who made it."""

    def make(out: Path) -> tuple[Graph, Detail]:
        meanwhile()
        shutil.copyfile(source, out)
        return read_graph(out), Detail(text=source.name)

    graph, detail = context.remembered_graph("stage", "network", Question(), Detail, make)
    return graph, detail.text


def test_what_was_made_is_laid_out_as_what_was_found_is(
    context: Context, store: Store, tmp_path: Path
) -> None:
    path = models.classifier(tmp_path / "one.onnx", seed=1)
    graph, _ = asked(context, path)
    assert graph.path.read_bytes() == path.read_bytes()
    assert graph.path.is_relative_to(context.work)
    with working(context.recipe, store, quiet) as other:
        found, text = asked(other, tmp_path / "never read")
        assert text == "one.onnx"
        assert found.path.read_bytes() == path.read_bytes()
        assert found.path.is_relative_to(other.work)


def test_who_was_faster_wins_and_is_laid_out(
    context: Context, store: Store, tmp_path: Path
) -> None:
    """Another host's record may appear while ours is made: its graph is everybody's."""
    slow = models.classifier(tmp_path / "slow.onnx", seed=1)
    fast = models.classifier(tmp_path / "fast.onnx", seed=2)
    with working(context.recipe, Store.open(str(tmp_path / "elsewhere")), quiet) as other:
        asked(other, fast)
        (winner,) = other.store.records("network")
        data = other.store.read(winner.blobs[0].sha256)

    def overtaken() -> None:
        store.put_bytes(winner.blobs[0].name, data)
        store.put(winner)

    graph, text = asked(context, slow, overtaken)
    assert text == "fast.onnx"
    assert graph.path.read_bytes() == fast.read_bytes()
    assert graph.sha256 == read_graph(fast).sha256
