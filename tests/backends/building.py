"""Builds of small graphs, as the pipeline calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtbuild.backends import processor
from trtbuild.backends.isolation import build_isolated
from trtbuild.backends.job import BuildRequest
from trtbuild.engine import ShapeRange, Target
from trtbuild.recipe import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from trtbuild.engine import BuildRecord, Setting
    from trtbuild.graph import Graph

ORT = Target(backend="onnxruntime", arch=processor.arch(), os=processor.os_name())


def rtx(arch: str) -> Target:
    return Target(backend="tensorrt-rtx", arch=arch, os=processor.os_name())


def request(graph: Graph, target: Target, out: Path, **settings: Setting) -> BuildRequest:
    """Return a request whose profile runs from batch 1 over 4 to 8 on every dynamic axis."""
    ranges = tuple(
        ShapeRange(
            input=spec.name,
            min=tuple(1 if isinstance(n, str) else n for n in spec.shape),
            opt=tuple(4 if isinstance(n, str) else n for n in spec.shape),
            max=tuple(8 if isinstance(n, str) else n for n in spec.shape),
        )
        for spec in graph.inputs
    )
    return BuildRequest(
        graph=graph,
        profiles=(ranges,),
        settings=tuple(settings.items()),
        target=target,
        out=out,
    )


def build(graph: Graph, target: Target, out: Path) -> BuildRecord:
    return build_isolated(request(graph, target, out), Limits(build_seconds=120))
