"""Which evaluation batches choose between networks, and which judge the engine."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from trtbuild.pipeline.choice import HELD_OUT_EVERY
from trtbuild.pipeline.source import evaluation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trtbuild.batches import Batch
    from trtbuild.graph import Graph
    from trtbuild.pipeline.network import Network
    from trtbuild.pipeline.source import Data


def held_out(data: Data, graph: Graph) -> Iterator[Batch]:
    """Yield the evaluation batches that choose a method: every fourth, all if there are few."""
    batches = evaluation(data, graph)
    if data.info.evaluation_batches < HELD_OUT_EVERY:
        return batches
    return itertools.islice(batches, HELD_OUT_EVERY - 1, None, HELD_OUT_EVERY)


def judging(data: Data, graph: Graph, network: Network) -> Iterator[Batch]:
    """Yield the evaluation batches that judge an engine: those that did not choose for it."""
    batches = evaluation(data, graph)
    if not network.chosen or data.info.evaluation_batches < HELD_OUT_EVERY:
        return batches
    kept = (index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1 for index in itertools.count())
    return itertools.compress(batches, kept)
