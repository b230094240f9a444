"""PyTorch modules: ``file.py:factory`` or ``package.module:factory`` returning a ``Module``.

The dynamo exporter is used. What it hands out may be right at the traced sizes only, so that
axes are compared with those asked for, and sizes at which forward branches are run.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.export import Dim

from trtbuild.errors import DataError, SourceError
from trtbuild.sources.shapes import check_exported, check_names, dynamic_axes
from trtbuild.sources.torch_branches import check_branches
from trtbuild.sources.torch_export import export_error, quiet, write_graph
from trtbuild.sources.torch_session import TorchSession, arrays_of, tensors
from trtbuild.sources.user_code import load, running

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.export import ExportedProgram

    from trtbuild.batches import Array, Batch
    from trtbuild.engine import ShapeRange
    from trtbuild.graph import Graph
    from trtbuild.sources import ExportRequest
    from trtbuild.sources.user_code import UserObject


def export(request: ExportRequest) -> Graph:
    """Export the module that the factory makes, in eval mode, on the CPU.

    Inputs are called as ``forward`` calls its parameters; an example batch's other names are
    labels. Without a batch the example is the module-level function ``example()`` beside the
    factory, or made from the profiles (float32).

    Raises:
        SourceError: the factory fails or makes no module, or nothing can serve as example.
        DataError: the batch lacks an input, or forward raises on it.
        RecipeError: a profile fits neither inputs nor example.
        ExportError: the model cannot be exported, or only for some of the sizes asked for.
    """
    user = load(request.location, request.folder)
    module = _module(user)
    names, required = _parameters(module, user.label)
    check_names(request.profiles, names)
    arrays = _example(request, user, names, required)
    axes = dynamic_axes({n: tuple(a.shape) for n, a in arrays.items()}, request.profiles)
    example = tensors(
        {name: _at_least_two(value, axes[name]) for name, value in arrays.items()}
    )
    with quiet(), torch.no_grad():
        program = _traced(module, example, axes, user.label)
        session = _session(module, user.label)
        outputs = tuple(session.run(arrays_of(example)))
        graph = write_graph(program, tuple(example), outputs, user.label, request.out)
        check_exported(graph.inputs, axes)
        check_branches(program, graph, session, arrays_of(example), request.profiles)
    return graph


def reference(location: str, folder: Path) -> TorchSession:
    """Return the module itself as a session: eval mode, inference mode, on the CPU."""
    user = load(location, folder)
    return _session(_module(user), user.label)


def _module(user: UserObject) -> torch.nn.Module:
    with quiet():
        made = user.call()
    if isinstance(made, torch.jit.ScriptModule):
        raise SourceError(
            f"{user.label}: returns a TorchScript module, which torch.export does not take. "
            f"Return the module that it was scripted from"
        )
    if not isinstance(made, torch.nn.Module):
        raise SourceError(
            f"{user.label}: returns a {type(made).__name__}, expected a torch.nn.Module"
        )
    return made.eval().cpu()


def _parameters(module: torch.nn.Module, label: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of forward's parameters in order, and which of them have no default."""
    named = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]
    if not named:
        raise SourceError(
            f"{label}: the module's forward names no parameter; inputs are found by the names "
            "of its parameters. Wrap the module in one with forward(self, images) or the like"
        )
    required = frozenset(p.name for p in named if p.default is p.empty)
    return tuple(p.name for p in named), required


def _session(module: torch.nn.Module, label: str) -> TorchSession:
    names, required = _parameters(module, label)

    def forward(inputs: Mapping[str, torch.Tensor]) -> object:
        return module(**inputs)

    return TorchSession(label, forward, names, required)


def _example(
    request: ExportRequest, user: UserObject, names: tuple[str, ...], required: frozenset[str]
) -> dict[str, Array]:
    """Return arrays for forward's parameters, in their order."""
    batch = request.example if request.example is not None else _own_example(user)
    if batch is None:
        batch = _from_profiles(request.profiles)
    missing = sorted(required - batch.keys())
    if missing and request.example is None:
        raise SourceError(
            f"{user.label}: nothing to trace the model with: no example for forward's "
            f"parameter {missing[0]!r}. Add a calibration provider, a profile for each input "
            "(float32 is then assumed), or a function example() beside the factory that "
            "returns a dict of arrays"
        )
    if missing:
        raise DataError(
            f"{user.label}: forward takes {missing[0]!r}, which the data has not; it has "
            f"{', '.join(map(repr, batch)) or 'nothing'}"
        )
    return {name: batch[name] for name in names if name in batch}


def _own_example(user: UserObject) -> Batch | None:
    function = user.sibling("example")
    if function is None:
        return None
    if not callable(function):
        raise SourceError(f"{user.label}: 'example' beside it must be a function")
    with running(f"{user.label}: example", user.folder):
        made = function()
    if not isinstance(made, dict) or not all(isinstance(a, np.ndarray) for a in made.values()):
        raise SourceError(f"{user.label}: example() must return a dict of NumPy arrays")
    return made


def _from_profiles(profiles: tuple[ShapeRange, ...]) -> Batch:
    """Return normal noise of the profiles' opt shapes: tracing looks at shapes, not values."""
    random = np.random.default_rng(0)
    return {p.input: random.standard_normal(p.opt).astype(np.float32) for p in profiles}


def _at_least_two(array: Array, axes: tuple[int, ...]) -> Array:
    """Return ``array`` doubled along those of ``axes`` that have the size 1.

    torch.export takes a size of 1 for a constant (its "0/1 specialization").
    """
    for axis in axes:
        if array.shape[axis] == 1:
            array = np.repeat(array, 2, axis=axis)
    return array


def _traced(
    module: torch.nn.Module,
    example: dict[str, torch.Tensor],
    axes: dict[str, tuple[int, ...]],
    label: str,
) -> ExportedProgram:
    """Trace the module; ``Dim.DYNAMIC`` is refused, not ignored, where code fixes an axis.

    With a named ``Dim`` torch.onnx falls back to a static model in silence, with ``Dim.AUTO``
    it takes whatever comes out (torch 2.13).
    """
    shapes = {name: dict.fromkeys(axes[name], Dim.DYNAMIC) for name in example}
    try:
        return torch.export.export(
            module, (), kwargs=example, dynamic_shapes=shapes, strict=False
        )
    except Exception as error:  # forward is the user's code
        raise export_error(label, error) from error
