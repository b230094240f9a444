"""Programs of ``torch.export.save``: files with a graph and weights, but without the class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from trtbuild.errors import ExportError, SourceError
from trtbuild.sources import absolute
from trtbuild.sources.pt2_screen import screen
from trtbuild.sources.shapes import check_dims, check_names
from trtbuild.sources.torch_export import message_of, quiet, write_graph
from trtbuild.sources.torch_names import named_outputs
from trtbuild.sources.torch_session import TorchSession

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

    from trtbuild.engine import ShapeRange
    from trtbuild.graph import Graph
    from trtbuild.sources import ExportRequest


def export(request: ExportRequest) -> Graph:
    """Convert the program; axes are dynamic where they were when it was saved, and only there.

    Raises:
        SourceError: the file is missing, is no archive, or needs code to be loaded.
        RecipeError: a profile is for an unknown input, or has another rank.
        ExportError: a profile asks for sizes that the program does not take.
    """
    path = absolute(request.location, request.folder)
    program = _load(path)
    names = _input_names(program)
    check_names(request.profiles, names)
    _check_ranges(program, request.profiles, path.name)
    with quiet(), torch.no_grad():
        outputs = _output_names(program, names, path.name)
        graph = write_graph(program, names, outputs, path.name, request.out)
    check_dims(graph.inputs, request.profiles)
    return graph


def reference(location: str, folder: Path) -> TorchSession:
    """Return the program as a session, run by PyTorch on the CPU."""
    path = absolute(location, folder)
    program = _load(path)
    names = _input_names(program)
    module = program.module(check_guards=False)

    def forward(inputs: Mapping[str, torch.Tensor]) -> object:
        args, keywords = _arguments(program, inputs)
        return module(*args, **keywords)

    return TorchSession(path.name, forward, names, frozenset(names))


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise SourceError(f"{path}: {what}; expected a .pt2 file from torch.export.save")
    screen(path)
    try:
        with quiet():
            # Not torch.export.load, which goes on with an older format, whose pickles were not
            # looked at, when this one fails (torch/export/__init__.py of 2.13).
            programs = load_pt2(str(path)).exported_programs
    except Exception as error:  # the deserializer fails with whatever the content leads it to
        raise SourceError(
            f"{path}: torch {torch.__version__} cannot load the program ({message_of(error)}). "
            f"Save it again with this version of torch"
        ) from error
    program = programs["model"]
    # Guards come from the file as text that module() would compile and run; they only repeat
    # what the program was traced with.
    program._guards_code = []  # noqa: SLF001  torch has no other way to leave them out
    return program


def _input_names(program: ExportedProgram) -> tuple[str, ...]:
    names = program.graph_signature.user_inputs
    tensors = tuple(name for name in names if isinstance(name, str))
    if len(tensors) != len(names):
        raise SourceError(
            "the program has an input that is a constant, not a tensor; save it again with "
            "tensors as its only inputs"
        )
    return tensors


def _placeholders(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Return the inputs' fake tensors, which have types and shapes but no data."""
    names = set(program.graph_signature.user_inputs)
    return {
        node.name: node.meta["val"]
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in names
    }


def _arguments(
    program: ExportedProgram, inputs: Mapping[str, torch.Tensor]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the positional and keyword arguments that forward was traced with, filled."""
    flat = [inputs[name] for name in _input_names(program)]
    args, keywords = pytree.tree_unflatten(flat, program.call_spec.in_spec)
    return args, keywords


def _output_names(
    program: ExportedProgram, names: tuple[str, ...], label: str
) -> tuple[str, ...]:
    """Return the outputs' names, from the structure that the program was saved with."""
    spec = program.call_spec.out_spec
    if spec is None:
        raise ExportError(f"{label}: the program does not say what it returns; save it again")
    leaves = [torch.zeros(0) for _ in range(spec.num_leaves)]
    return tuple(named_outputs(pytree.tree_unflatten(leaves, spec), names))


def _check_ranges(
    program: ExportedProgram, profiles: tuple[ShapeRange, ...], label: str
) -> None:
    """Refuse a profile that goes beyond the sizes with which the program was exported."""
    placeholders = _placeholders(program)
    for profile in profiles:
        # torch types sizes as int; those of fake tensors are SymInt where they vary.
        shape: tuple[object, ...] = tuple(placeholders[profile.input].shape)
        for axis, size in enumerate(shape[: len(profile.max)]):
            if not isinstance(size, torch.SymInt):
                continue  # a fixed axis: the graph tells, once it is there
            bound = program.range_constraints.get(size.node.expr)
            if bound is not None and bool(bound.upper < profile.max[axis]):
                raise ExportError(
                    f"{label}: input {profile.input!r}: the profile asks for sizes up to "
                    f"{profile.max[axis]} on axis {axis}, but the program was exported for at "
                    f"most {bound.upper}. Lower the profile's max, or export it again"
                )
