"""Parses and builds with TensorRT's Python API; always in a child process.

A refused setter of TensorRT only logs an error and goes on, so each one is read back here, and
the log is scanned after it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trtbuild.backends import memory, profiles, staging, trt_plan
from trtbuild.backends.diagnosis import MEMORY_WORDS
from trtbuild.backends.job import PROGRESS
from trtbuild.backends.trt_api import api
from trtbuild.backends.trt_layers import read_layers
from trtbuild.backends.trt_log import remedy
from trtbuild.engine import BuildRecord
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trtbuild.engine import Setting, ShapeRange, Target
    from trtbuild.graph import Graph

_T = TypeVar("_T")

_MIB = 1 << 20


class _Build:
    """One build: the graph, what it is for, and TensorRT's objects of it."""

    def __init__(self, graph: Graph, target: Target) -> None:
        self._graph = graph
        self._target = target
        self._api = api(target.backend)
        self._trt = self._api.trt
        self._messages = self._api.messages
        self._builder = self._trt.Builder(self._api.logger)
        self._config = self._builder.create_builder_config()
        self._network = self._builder.create_network(0)

    def parse(self, path: Path) -> None:
        """Read the staged model in ``path`` into the network.

        Raises:
            BuildError: the parser refuses it, or got nothing out of it.
        """
        PROGRESS.debug("parsing the model")
        parser = self._trt.OnnxParser(self._network, self._api.logger)
        accepted = parser.parse_from_file(str(path))
        reasons = [self._parser_error(parser, index) for index in range(parser.num_errors)]
        if not accepted or reasons:
            raise self._error("refuses the model", reasons or self._messages.errors)
        if not (self._network.num_layers and self._network.num_inputs):
            raise self._error("found no layers or no inputs in the model", [])
        narrowed = self._messages.narrowed()
        if narrowed:
            raise self._error("reads uint8 as int8, which clips values at 127", [narrowed])
        self._check_io(
            "inputs",
            [self._network.get_input(index) for index in range(self._network.num_inputs)],
            {spec.name: spec.dtype for spec in self._graph.inputs},
        )
        self._check_io(
            "outputs",
            [self._network.get_output(index) for index in range(self._network.num_outputs)],
            {spec.name: spec.dtype for spec in self._graph.outputs},
        )

    def configure(
        self,
        settings: Mapping[str, Setting],
        ranges: tuple[tuple[ShapeRange, ...], ...],
    ) -> None:
        """Apply every setting and profile, and see that it took effect.

        Raises:
            BuildError: TensorRT refused one, or uses another value.
        """
        config = self._config
        capability = self._capability()
        self._set(
            "num_compute_capabilities",
            1,
            lambda value: setattr(config, "num_compute_capabilities", value),
            lambda: config.num_compute_capabilities,
        )
        self._set(
            "compute_capability",
            capability,
            lambda value: config.set_compute_capability(value, 0),
            lambda: config.get_compute_capability(0),
        )
        self._set(
            "optimization_level",
            settings["optimization_level"],
            lambda value: setattr(config, "builder_optimization_level", value),
            lambda: config.builder_optimization_level,
        )
        workspace = self._trt.MemoryPoolType.WORKSPACE
        self._set(
            "workspace_mib",
            int(settings["workspace_mib"]) * _MIB,
            lambda value: config.set_memory_pool_limit(workspace, value),
            lambda: config.get_memory_pool_limit(workspace),
        )
        self._set(
            "profiling_verbosity",
            self._trt.ProfilingVerbosity.DETAILED,
            lambda value: setattr(config, "profiling_verbosity", value),
            lambda: config.profiling_verbosity,
        )
        # fp32 means fp32: TF32, on by default, keeps 10 bits of the mantissa.
        self._set(
            "tf32",
            False,  # noqa: FBT003  the value of the flag
            lambda _: config.clear_flag(self._trt.BuilderFlag.TF32),
            lambda: config.get_flag(self._trt.BuilderFlag.TF32),
        )
        sparse = self._trt.BuilderFlag.SPARSE_WEIGHTS
        self._set(
            "sparse_weights",
            settings["sparse_weights"],
            lambda wanted: (config.set_flag if wanted else config.clear_flag)(sparse),
            lambda: config.get_flag(sparse),
        )
        for index, shapes in enumerate(ranges):
            self._add_profile(index, shapes)

    def serialize(self) -> bytes:
        """Build, and return the engine's bytes after a look at their header.

        Raises:
            BuildError: TensorRT cannot build the network, or logged an error while it did.
        """
        PROGRESS.debug("building the engine")
        plan = self._builder.build_serialized_network(self._network, self._config)
        if plan is None or self._messages.errors:
            raise self._error("cannot build the model", self._messages.errors)
        engine = bytes(plan)
        problem = trt_plan.problem(engine, self._target.arch)
        if problem:
            raise self._error(f"returned no usable engine: {problem}", [])
        if not self._messages.layers:
            raise self._error("did not report the layers of its engine", [])
        return engine

    def _capability(self) -> Any:  # noqa: ANN401  the bindings have no types
        name = self._target.arch.replace("sm_", "SM")
        if name not in self._trt.ComputeCapability.__members__:
            known = [
                word
                for word in self._trt.ComputeCapability.__members__
                if word.startswith("SM")
            ]
            raise self._error(
                f"does not know {self._target.arch}: it has {', '.join(known)}", []
            )
        return self._trt.ComputeCapability.__members__[name]

    def _set(
        self,
        name: str,
        value: _T,
        apply: Callable[[_T], object],
        read: Callable[[], object],
    ) -> None:
        """Apply one setting; refused means False, another value, or an error in the log."""
        self._messages.errors.clear()
        try:
            accepted = apply(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._error(
                f"refuses {name} = {value}", [" ".join(str(error).split())]
            ) from error
        got = read()
        if accepted is False or got != value or self._messages.errors:
            raise self._error(
                f"did not take {name} = {value}, it has {got}", self._messages.errors
            )

    def _add_profile(self, index: int, shapes: tuple[ShapeRange, ...]) -> None:
        profile = self._builder.create_optimization_profile()
        for shape in shapes:
            self._set_shape(profile, index, shape)
        self._set(
            f"profile {index}",
            index,
            lambda _: self._config.add_optimization_profile(profile),
            lambda: self._config.num_optimization_profiles - 1,
        )

    def _set_shape(self, profile: Any, index: int, shape: ShapeRange) -> None:  # noqa: ANN401  untyped bindings
        def apply(value: tuple[tuple[int, ...], ...]) -> object:
            return profile.set_shape(shape.input, *value)

        def read() -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(dims) for dims in profile.get_shape(shape.input))

        name = f"the shapes of {shape.input!r} in profile {index}"
        self._set(name, (shape.min, shape.opt, shape.max), apply, read)

    def _check_io(self, what: str, tensors: list[Any], expected: dict[str, str]) -> None:
        found = {
            tensor.name: self._api.dtype(tensor.dtype) or str(tensor.dtype)
            for tensor in tensors
        }
        if found != expected:
            raise self._error(f"reads the {what} as {found}, the model has {expected}", [])

    def _error(self, what: str, reasons: list[str]) -> BuildError:
        detail = "; ".join(dict.fromkeys(filter(None, reasons)))
        if any(word in detail for word in MEMORY_WORDS):
            raise MemoryError(detail)
        said = f": {detail}" if detail else ""
        return BuildError(
            f"{self._graph.path}: {self._api.title} for {self._target.arch} "
            f"{what}{said}. What to do: {remedy(what + detail)}"
        )

    def _parser_error(self, parser: Any, index: int) -> str:  # noqa: ANN401  untyped bindings
        """Return one error of the parser; the binding raises if its text is no UTF-8."""
        error = parser.get_error(index)
        try:
            place = f"node {error.node_name()!r} ({error.node_operator()})"
            text = self._messages.tidy(f"{place}: {error.desc()}")
            return f"{text} [{error.func()}, {error.code()}]"
        except UnicodeDecodeError:
            return f"error {index} of the parser, whose text is not readable"


def build(
    graph: Graph,
    ranges: tuple[tuple[ShapeRange, ...], ...],
    settings: Mapping[str, Setting],
    target: Target,
    out: Path,
) -> BuildRecord:
    """Write the engine of ``graph`` to ``out``; ``settings`` holds every setting.

    Raises:
        BuildError: see :func:`trtbuild.backends.tensorrt_rtx.build`.
        MemoryError: TensorRT could not get memory.
    """
    started = time.perf_counter()
    profiles.check(graph, ranges)
    profiles.check_complete(graph, ranges)
    with tempfile.TemporaryDirectory(prefix=".stage-", dir=out.parent) as folder:
        PROGRESS.debug("reading the model")
        staged = staging.stage(graph.path, Path(folder) / "model")
        messages = api(target.backend).messages
        messages.follow(staged)
        this = _Build(graph, target)
        this.parse(staged.path)
        this.configure(settings, ranges)
        engine = this.serialize()
    out.write_bytes(engine)
    return BuildRecord(
        layers=read_layers(messages.layers, staged.nodes),
        inputs=graph.inputs,
        outputs=graph.outputs,
        warnings=tuple(dict.fromkeys(messages.warnings)),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=memory.peak_rss_bytes(),
    )
