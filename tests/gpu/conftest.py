"""A small engine of each flavor of TensorRT that is installed, for the first GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.backends import building, graphs
from trtbuild.backends import NAMES, backend, gpu
from trtbuild.backends.isolation import build_isolated
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.backends.job import BuildRequest
    from trtbuild.engine import Setting, Target
    from trtbuild.graph import Graph

FLAVORS = [name for name in NAMES if name.startswith("tensorrt")]


class Built(NamedTuple):
    """An engine, what it is of, and what it is for."""

    graph: Graph
    plan: bytes
    target: Target


@pytest.fixture(params=FLAVORS)
def target(request: pytest.FixtureRequest) -> Target:
    found = backend(request.param).targets(gpu.archs()[:1])
    reason = found[0].cannot_build or found[0].cannot_run
    if reason:
        pytest.skip(reason)
    return found[0].target


class Builds:
    """Builds in one folder."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder

    def request(self, graph: Graph, **settings: Setting) -> BuildRequest:
        return building.request(graph, self.target, self.folder / "engine", **settings)

    def build(self, request: BuildRequest) -> Built:
        build_isolated(request, Limits(build_seconds=300))
        return Built(request.graph, request.out.read_bytes(), self.target)

    def residual(self, **settings: Setting) -> Built:
        """Return a small residual network (x: N x 3 x 16 x 16, N up to 8)."""
        graph = graphs.residual(self.folder / "m.onnx", None)
        return self.build(self.request(graph, **settings))


@pytest.fixture
def builds(target: Target, tmp_path: Path) -> Builds:
    return Builds(target, tmp_path)
