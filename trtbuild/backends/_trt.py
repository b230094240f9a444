"""Parses and builds with TensorRT's Python API, both flavors; always in a child process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from trtbuild.backends import (
    memory,
    profiles,
    staging,
    trt_inspector,
    trt_plan,
    trt_precision,
    trt_progress,
    trt_refit,
    trt_repeats,
    trt_session,
    trt_settings,
)
from trtbuild.backends.job import PROGRESS
from trtbuild.backends.session import Attached
from trtbuild.backends.trt_api import api, load_lean, place_on_dla, started
from trtbuild.backends.trt_config import Settings
from trtbuild.backends.trt_layers import read_layers
from trtbuild.backends.trt_log import Refusal
from trtbuild.backends.trt_timing import TimingCache
from trtbuild.engine import BuildRecord, Layers
from trtbuild.graph.structure import initializers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.backends.job import BuildRequest
    from trtbuild.backends.staging import Staged
    from trtbuild.engine import Setting, ShapeRange


class _Build:
    """One build: the graph, what it is for, and TensorRT's objects of it."""

    def __init__(self, request: BuildRequest, values: Mapping[str, Setting]) -> None:
        self._request = request
        self._values = values
        self._target = request.target
        self._api = api(request.target.backend)
        self._trt = self._api.trt
        self._messages = self._api.messages
        subject = f"{self._api.title} for {request.target.arch}"
        self._refusal = Refusal(request.graph.path, subject, self._messages)
        self._builder = started(self._api, lambda: self._trt.Builder(self._api.logger))
        self._config = self._builder.create_builder_config()
        flags = trt_precision.network_flags(self._trt)
        self._network = self._builder.create_network(flags)
        self._settings = Settings(self._trt, self._config, self._refusal)
        mode = str(values.get("timing_cache", ""))
        self._timing = TimingCache(mode, request.timing_cache, self._refusal)

    def load_plugins(self) -> None:
        """Load the stock plug-ins and copies of the request's libraries.

        Raises:
            MissingBackendError: a library cannot be loaded.
            TrustError: a library is not the one of the key.
        """
        attached = Attached(
            plugins=tuple(path.read_bytes() for path in self._request.plugins),
            plugin_digests=str(self._values.get("plugins", "")),
        )
        trt_session.load_plugins(self._api, attached, str(self._request.graph.path))

    def refitted(self, staged: Staged) -> tuple[bytes, str]:
        """Return the donor's engine with the weights of the staged model.

        Without a donor, or where it did not take all of them: nothing, and why.
        """
        donor = self._request.donor
        if donor is None:
            return b"", ""
        PROGRESS.debug("refitting an engine")
        plan = donor.read_bytes()
        try:
            loaded = self._deserialized(plan)
            if hasattr(self._trt, "OnnxParserRefitter"):
                source = trt_refit.onnx_file(staged.path)
            else:
                model = onnx.load(staged.path, load_external_data=False)
                source = trt_refit.arrays(initializers(model, staged.path.parent))
            trt_refit.give(self._api, loaded, source, self._request.changed)
            if self._values["strip_plan"]:
                return plan, ""  # it has no weights: they are given when it is loaded
            exclude_lean = bool(self._values.get("exclude_lean_runtime"))
            return trt_refit.stored(self._api, loaded, exclude_lean=exclude_lean), ""
        except trt_refit.RefusedError as error:
            self._messages.errors.clear()
            return b"", f"built, not refitted: {error}"

    def parse(self, staged: Staged) -> None:
        """Read the staged model into the network.

        Raises:
            BuildError: the parser refuses it, or got nothing out of it.
        """
        PROGRESS.debug("parsing the model")
        self._expect_types(staged)
        parser = self._trt.OnnxParser(self._network, self._api.logger)
        accepted = parser.parse_from_file(str(staged.path))
        reasons = [
            self._parser_error(parser, index, staged) for index in range(parser.num_errors)
        ]
        if not accepted or reasons:
            raise self._refusal.error("refuses the model", reasons or self._messages.errors)
        if not (self._network.num_layers and self._network.num_inputs):
            raise self._refusal.error("found no layers or no inputs in the model", [])
        narrowed = self._messages.narrowed()
        if narrowed:
            raise self._refusal.error(
                "reads uint8 as int8, which clips values at 127", [narrowed]
            )
        graph = self._request.graph
        inputs = [self._network.get_input(index) for index in range(self._network.num_inputs)]
        for tensor in inputs:
            if tensor.is_shape_tensor:  # a profile would need a range of its values
                raise self._refusal.error(
                    f"reads shapes from the values of the input {tensor.name!r}", []
                )
        self._check_io(
            "inputs",
            inputs,
            {spec.name: spec.dtype for spec in graph.inputs},
        )
        self._check_io(
            "outputs",
            [self._network.get_output(index) for index in range(self._network.num_outputs)],
            {spec.name: spec.dtype for spec in graph.outputs},
        )

    def configure(self, staged: Staged) -> None:
        """Apply every setting and profile, and see that it took effect.

        Raises:
            BuildError: TensorRT refused one, or uses another value.
        """
        config = self._config
        if trt_settings.brings_code(self._values):
            load_lean()
        if hasattr(config, "num_compute_capabilities"):
            self._name_capability()
        self._expect_dla(staged)
        self._settings.apply(self._values)
        self._mark_refittable(str(self._values.get("refit_individual", "")))
        if "timing_cache" in self._values:
            self._timing.load(self._trt, config, self._settings)
        if not trt_precision.is_typed(self._trt):
            trt_precision.obey(self._trt, self._network, self._settings, staged.model)
        for index, shapes in enumerate(self._request.profiles):
            self._add_profile(index, shapes)
        self._settings.check_flags()
        monitor = trt_progress.monitor(self._trt)
        self._messages.tells_timing = monitor is None
        if monitor is not None:
            config.progress_monitor = monitor

    def engine(self) -> bytes:
        """Build, as often as the settings say, and return the engine's bytes; the fastest's.

        Raises:
            BuildError: TensorRT cannot build the network, or logged an error while it did.
            MissingBackendError: of several engines none can be measured here.
        """
        repeats = int(self._values.get("build_repeats", 1))
        if repeats == 1:
            engine = self._serialize()
            self._timing.save(self._config)
            return engine
        trt_repeats.require(self._target)
        engines = []
        for index in range(repeats):
            PROGRESS.debug("building engine %d of %d", index + 1, repeats)
            self._timing.renew(self._config)
            engines.append(self._serialize())
        PROGRESS.debug("measuring %d engines", repeats)
        return engines[trt_repeats.fastest(trt_repeats.measure(engines, self._request))]

    def layers(self, engine: bytes, staged: Staged) -> Layers:
        """Return the layers of an engine: logged by a builder without a GPU, else asked for.

        Raises:
            BuildError: its own runtime refuses the engine, or the log names no layers.
        """
        if self._target.backend == "tensorrt-rtx":
            if not self._messages.layers:
                raise self._refusal.error("did not report the layers of its engine", [])
            return read_layers(self._messages.layers, staged.nodes)
        if self._values.get("runtime_platform") != trt_settings.OPTIONS["runtime_platform"]:
            return Layers(layers=(), unread="the engine is for another platform than this one")
        loaded = self._deserialized(engine)
        if loaded is None or self._messages.errors:
            raise self._refusal.error(
                "built an engine that its runtime refuses", self._messages.errors
            )
        told = trt_inspector.information(self._trt, loaded)
        return trt_inspector.layers_of(told, staged.nodes)

    def _deserialized(self, engine: bytes) -> Any:  # noqa: ANN401  untyped bindings
        self._messages.errors.clear()
        self._runtime = started(self._api, lambda: self._trt.Runtime(self._api.logger))
        # Our own bytes: a version-compatible engine holds a lean runtime, which is host code.
        compatible = bool(self._values.get("version_compatible"))
        self._runtime.engine_host_code_allowed = compatible
        place_on_dla(self._api, self._runtime, int(self._values.get("dla_core", -1)))
        return self._runtime.deserialize_cuda_engine(engine)

    def _serialize(self) -> bytes:
        """Build, and return the engine's bytes after a look at their header.

        Errors are logged for kernels too that a build goes on without: only a build that gives
        nothing has failed, the errors of any other are findings.
        """
        PROGRESS.debug("building the engine")
        messages = self._messages
        messages.errors.clear()
        messages.times_tactics = True
        plan = self._builder.build_serialized_network(self._network, self._config)
        messages.times_tactics = False
        if plan is None:
            reasons = (*messages.errors, messages.degraded.last_full)
            raise self._refusal.error("cannot build the model", reasons)
        messages.warnings += messages.errors
        messages.errors.clear()
        engine = bytes(plan)
        problem = trt_plan.problem(engine, self._target)
        if problem:
            raise self._refusal.error(f"returned no usable engine: {problem}", [])
        return engine

    def _name_capability(self) -> None:
        """Name the architecture that a builder without a GPU builds for."""
        config = self._config
        known = self._trt.ComputeCapability.__members__
        name = self._target.arch.replace("sm_", "SM")
        if name not in known:
            has = ", ".join(word for word in known if word.startswith("SM"))
            raise self._refusal.error(f"does not know {self._target.arch}: it has {has}", [])
        self._settings.take(
            "num_compute_capabilities",
            1,
            lambda value: setattr(config, "num_compute_capabilities", value),
            lambda: config.num_compute_capabilities,
        )
        self._settings.take(
            "compute_capability",
            known[name],
            lambda value: config.set_compute_capability(value, 0),
            lambda: config.get_compute_capability(0),
        )

    def _mark_refittable(self, names: str) -> None:
        if not names:
            return
        self._settings.flag("refit_individual", "REFIT_INDIVIDUAL", wanted=True)
        for name in names.split(","):
            self._mark(name)

    def _mark(self, name: str) -> None:
        self._settings.take(
            f"refittable weights {name!r}",
            True,  # noqa: FBT003  what is asked for
            lambda _: self._network.mark_weights_refittable(name),
            lambda: self._network.are_weights_marked_refittable(name),
        )

    def _add_profile(self, index: int, shapes: tuple[ShapeRange, ...]) -> None:
        profile = self._builder.create_optimization_profile()
        for shape in shapes:
            self._set_shape(profile, index, shape)
        self._settings.take(
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
        self._settings.take(name, (shape.min, shape.opt, shape.max), apply, read)

    def _expect_types(self, staged: Staged) -> None:
        """Refuse types that a version without strongly typed networks cannot be told of."""
        if trt_precision.is_typed(self._trt):
            return
        lacks = trt_precision.lacking(staged.model, self._trt.BuilderFlag.__members__)
        if lacks:
            raise self._refusal.error(
                f"computes nothing in {', '.join(lacks)}: install TensorRT 10 or newer, or ask "
                "for fp16 or int8",
                [],
            )
        scaled = trt_precision.unreadable_scale(staged.model)
        if scaled:
            raise self._refusal.error(
                f"reads the scales of Q/DQ as float32, and {staged.original(scaled)!r} has "
                "another type: ask for --rest fp32, or install TensorRT 10 or newer",
                [],
            )

    def _expect_dla(self, staged: Staged) -> None:
        """Refuse a DLA core that is not here, and a network that none computes."""
        core = int(self._values.get("dla_core", -1))
        here = int(self._builder.num_DLA_cores)
        if core >= max(here, 0):
            has = f"{here} DLA cores" if here > 0 else "no DLA"
            raise self._refusal.error(f"finds {has} on this machine, asked is core {core}", [])
        if core >= 0 and not {"FP16", "INT8"}.intersection(
            trt_precision.flags_of(staged.model)
        ):
            raise self._refusal.error("computes nothing in FP32 on DLA", [])

    def _check_io(self, what: str, tensors: list[Any], expected: dict[str, str]) -> None:
        found = {
            tensor.name: self._api.dtype(tensor.dtype) or str(tensor.dtype)
            for tensor in tensors
        }
        if found != expected:
            raise self._refusal.error(
                f"reads the {what} as {found}, the model has {expected}", []
            )

    def _parser_error(self, parser: Any, index: int, staged: Staged) -> str:  # noqa: ANN401  untyped bindings
        """Return one error of the parser; the binding raises if its text is no UTF-8."""
        error = parser.get_error(index)
        try:
            if hasattr(error, "node_name"):
                place = f"node {error.node_name()!r} ({error.node_operator()})"
            else:  # 8.6 tells the node's place in the graph
                nodes = dict(enumerate(staged.model.graph.node))
                node = nodes.get(error.node())
                place = f"node {node.name!r} ({node.op_type})" if node else "the model"
            text = self._messages.tidy(f"{place}: {error.desc()}")
            return f"{text} [{error.func()}, {error.code()}]"
        except UnicodeDecodeError:
            return f"error {index} of the parser, whose text is not readable"


def build(request: BuildRequest, settings: Mapping[str, Setting]) -> BuildRecord:
    """Write the engine of a request; ``settings`` holds every setting that its backend honors.

    Raises:
        BuildError: see :func:`trtbuild.backends.tensorrt_rtx.build`.
        MemoryError: TensorRT could not get memory.
    """
    started = time.perf_counter()
    graph = request.graph
    profiles.check(graph, request.profiles)
    profiles.check_complete(graph, request.profiles)
    with tempfile.TemporaryDirectory(prefix=".stage-", dir=request.out.parent) as folder:
        PROGRESS.debug("reading the model")
        staged = staging.stage(graph, Path(folder) / "model")
        messages = api(request.target.backend).messages
        messages.follow(staged)
        this = _Build(request, settings)
        this.load_plugins()
        engine, refused = this.refitted(staged)
        refitted = bool(engine)
        layers = Layers(layers=(), unread="those of the engine that was refitted")
        if not refitted:
            this.parse(staged)
            this.configure(staged)
            engine = this.engine()
            layers = this.layers(engine, staged)
    request.out.write_bytes(engine)
    return BuildRecord(
        layers=layers,
        inputs=graph.inputs,
        outputs=graph.outputs,
        warnings=(
            *((refused,) if refused else ()),
            *dict.fromkeys(messages.warnings),
            *messages.degraded.findings(),
        ),
        refitted=refitted,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=memory.peak_rss_bytes(),
    )
