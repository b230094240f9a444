"""From a PyTorch program to an ONNX graph, and the words for what can go wrong on the way."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import warnings
from typing import TYPE_CHECKING

import torch

from trtbuild.errors import ExportError
from trtbuild.graph.model import save_model
from trtbuild.recipe import profile_table
from trtbuild.sources.torch_names import rename_axes, rename_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch.export import ExportedProgram

    from trtbuild.graph import Graph

OPSET = 20
"""The exporter's own default in torch 2.13, fixed so that another torch keeps to it."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

_STATIC = (
    re.compile(
        r"inferred a static shape of (?P<size>\d+) for dimension "
        r"inputs\['(?P<name>\w+)'\]\.shape\[(?P<axis>\d+)\]"
    ),
    re.compile(
        r"You marked L\['(?P<name>\w+)'\]\.size\(\)\[(?P<axis>\d+)\] as dynamic but your code "
        r"specialized it to be a constant \((?P<size>\d+)\)"
    ),
)
"""How torch 2.13 says that code fixes an axis; which of the two depends on the code."""

_ADVICE = ("For more information", "For extended logs", "For more debugging", "For C++ stack")
"""Lines of torch's messages that help those who debug torch."""

_PATH_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
"""What the exporter notes on a node that names files of this machine, or repeats it."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the framework's warnings and log lines away, and its prints off stdout.

    What is lost is chatter: the exporter warns of missing torchvision operators at every call.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def write_graph(
    program: ExportedProgram,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    label: str,
    out: Path,
) -> Graph:
    """Write ``program`` as ONNX to ``out``; inputs and outputs get the names given, in order.

    Raises:
        ExportError: an operator has no ONNX form, or the graph's inputs or outputs are others.
    """
    try:
        converted = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, verbose=False, optimize=True
        )
    except Exception as error:  # the exporter raises whatever its torchlib functions do
        raise export_error(label, error) from error
    if converted is None:
        raise ExportError(f"{label}: torch.onnx returned no graph; another torch may")
    model = converted.model
    rename_values(model.graph, inputs, outputs)
    rename_axes(model.graph)
    for node in model.graph.all_nodes():
        for key in _PATH_METADATA:
            node.metadata_props.pop(key, None)
    return save_model(model, out)


def export_error(label: str, error: Exception) -> ExportError:
    """Return what torch's exporter said, without its colors, links and wrappers."""
    text = message_of(error)
    static = next((found for pattern in _STATIC if (found := pattern.search(text))), None)
    if static:
        size, name, axis = static["size"], static["name"], static["axis"]
        return ExportError(
            f"{label}: input {name!r}: axis {axis} should vary, but the model's code fixes it "
            f"at {size} (an if, an index or a reshape that depends on the size). Make the code "
            f"independent of it, or fix the axis: min = opt = max in {profile_table(name)}"
        )
    return ExportError(
        f"{label}: PyTorch cannot export the model: {text}\n"
        f"Change the model's forward, or give an ONNX file of it"
    )


def message_of(error: BaseException) -> str:
    """Return the text of the innermost cause that torch's wrappers hide, ANSI codes removed."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = _ANSI.sub("", str(error)).splitlines()
    kept = [line.rstrip() for line in lines if line.strip() and not line.startswith(_ADVICE)]
    end = next((i for i, line in enumerate(kept) if "The error above occurred" in line), None)
    return f"{type(error).__name__}: " + "\n".join(kept[:end])
