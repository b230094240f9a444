"""The building stage: one engine per target, each built in a child process, by one process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

import trtbuild
from trtbuild.backends import backend, gpu_lock, sandbox
from trtbuild.backends.isolation import build_isolated
from trtbuild.backends.job import BuildRequest
from trtbuild.engine import EngineKey, Manifest, ShapeRange
from trtbuild.errors import RecipeError
from trtbuild.graph.cost import count_macs, quantizer_names
from trtbuild.graph.operands import operand_precisions
from trtbuild.pipeline.building import (
    Watch,
    libraries,
    pinned_cache,
    seconds_before,
    timing_file,
)
from trtbuild.pipeline.refitting import (
    Choice,
    choose,
    put_structure,
    put_weights,
    structure_if_refittable,
    told,
)
from trtbuild.recipe import profile_table, recipe_json
from trtbuild.runtime.made_here import mark_made
from trtbuild.runtime.trust_files import STATE_VARIABLE
from trtbuild.store import make_record, put_plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtbuild.engine import BuildRecord, Layers, Precision
    from trtbuild.graph import Graph
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.targets import Planned
    from trtbuild.recipe import Recipe
    from trtbuild.store import Blob, Record

_DERIVED = (1, 8, 32)
"""Batch sizes (min, opt, max) where the model leaves the batch open and nobody named any."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine in the store, and what was planned for it."""

    planned: Planned
    manifest: Manifest
    cached: bool


def profile_of(context: Context, graph: Graph) -> tuple[ShapeRange, ...]:
    """Return the optimization profile: the recipe's, or one over an open batch axis.

    Raises:
        RecipeError: another axis is open and the recipe has no profile for its input.
    """
    given = {item.input: item for item in context.recipe.build.shape_ranges()}
    sizes = _named_sizes(graph, given)
    ranges = []
    for spec in graph.inputs:
        is_open = [isinstance(size, str) for size in spec.shape]
        axes = [
            sizes.get(size, ()) if isinstance(size, str) else (size,) * 3 for size in spec.shape
        ]
        if spec.name in given:
            ranges.append(given[spec.name])
        elif any(is_open) and all(axes):
            low, mid, high = zip(*axes, strict=True)
            ranges.append(ShapeRange(input=spec.name, min=low, opt=mid, max=high))
        elif any(is_open[1:]):
            shape = ", ".join(str(size) for size in spec.shape)
            raise RecipeError(
                f"{context.recipe.name}: input {spec.name!r} has the open shape [{shape}]: "
                f"give --shape {spec.name}:MIN,OPT,MAX or {profile_table(spec.name)}"
            )
        elif any(is_open):
            rest = tuple(size for size in spec.shape[1:] if isinstance(size, int))
            low, mid, high = ((size, *rest) for size in _DERIVED)
            ranges.append(ShapeRange(input=spec.name, min=low, opt=mid, max=high))
            context.find(
                "build",
                f"input {spec.name!r} has an open batch and no profile: built for batches of "
                f"{_DERIVED[0]} to {_DERIVED[2]}, tuned for {_DERIVED[1]}",
            )
    return tuple(ranges)


def _named_sizes(
    graph: Graph, given: Mapping[str, ShapeRange]
) -> dict[str, tuple[int, int, int]]:
    """Return (min, opt, max) of the named axes of inputs with a profile: one name, one size."""
    return {
        size: (profile.min[axis], profile.opt[axis], profile.max[axis])
        for spec in graph.inputs
        if (profile := given.get(spec.name)) is not None
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str) and size != "?"
    }


def build_engine(
    context: Context,
    planned: Planned,
    graph: Graph,
    profile: tuple[ShapeRange, ...],
    precision: Precision,
) -> Built:
    """Return the engine of ``graph`` for a target, from the store or built now.

    Raises:
        BuildError: the graph cannot be built for this target.
    """
    profiles = (profile,) if profile else ()
    key = EngineKey(
        network_sha256=graph.sha256,
        profiles=profiles,
        settings=planned.settings,
        target=planned.target,
        fingerprint=planned.fingerprint,
    )

    def make() -> Record:
        backend(planned.target.backend).preflight(graph, planned.target, precision)
        confined = sandbox.chosen()
        name = f"build {planned.target} {precision}"
        context.say(name if confined.program else f"{name} (no sandbox: {confined.reason})")
        made = _built(context, planned, graph, key, precision)
        layers = made.layers or requested(made.record.layers, operand_precisions(graph))
        shares = _mac_shares(layers, count_macs(graph, profile))
        blob = made.blobs[0]
        manifest = Manifest(
            key=key.digest,
            preimage=key,
            sha256=blob.sha256,
            bytes=blob.bytes,
            inputs=made.record.inputs,
            outputs=made.record.outputs,
            layers=layers,
            precision_requested=precision,
            int8_mac_share=shares.get("int8", 0.0),
            mac_share=shares,
            fused_layers=_fused(layers, quantizer_names(graph)),
            warnings=(*made.findings, *made.record.warnings),
            build_seconds=round(made.record.seconds, 3),
            peak_rss_bytes=made.record.peak_rss_bytes,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            trtbuild_version=trtbuild.__version__,
            recipe=recipe_json(_asking_for(context.recipe, precision)),
            refit_of=made.refit_of,
            weights_sha256=made.weights_sha256,
        )
        record = make_record("engine", key.digest, key, manifest, made.blobs)
        if unknown := mark_made(record):
            context.find(name, _unremembered(unknown))
        return record

    name = f"build {planned.target} {precision}"
    before = len(context.stages)
    found = context.stage(name, "engine", key.digest, make, Manifest)
    manifest = found.read(Manifest)
    put_plan(context.store, manifest)
    for warning in manifest.warnings:
        context.find(name, warning)
    return Built(planned=planned, manifest=manifest, cached=context.stages[before].cached)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What a child process made: the engine's blob first, then what its record names too."""

    record: BuildRecord
    blobs: tuple[Blob, ...]
    findings: tuple[str, ...]
    layers: Layers | None
    refit_of: str
    weights_sha256: str


def _built(
    context: Context, planned: Planned, graph: Graph, key: EngineKey, precision: Precision
) -> _Made:
    """Build an engine in a child process, or give a stored one the weights of ``graph``."""
    store, settings = context.store, dict(planned.settings)
    structure = structure_if_refittable(settings, graph)
    choice = choose(store, key, structure) if structure else Choice()
    refit = choice.refit
    plugins = libraries(store, planned)
    blobs = [*plugins, *pinned_cache(store, planned)]
    if structure:
        blobs.append(put_structure(store, structure))
    name = f"build {planned.target} {precision}"
    expected_s = seconds_before(store, context.recipe.name, planned, precision)
    gpus = backend(planned.target.backend).gpus(planned.target)
    with store.scratch() as folder, gpu_lock.one_of(gpus, context.say) as bus:
        request = BuildRequest(
            graph=graph,
            profiles=key.profiles,
            settings=planned.settings,
            target=planned.target,
            out=folder / "engine",
            donor=refit.path if refit else None,
            changed=refit.changed if refit else (),
            plugins=tuple(store.verified_path(each.sha256) for each in plugins),
            timing_cache=timing_file(store, planned),
            gpu=bus,
        )
        watch = Watch(context.say, name, expected_s)
        record = build_isolated(request, context.recipe.limits, watch)
        engine = store.put_file("engine", request.out)
        weights = put_weights(store, graph, folder) if settings.get("strip_plan") else None
    donor = refit.donor if refit and record.refitted else None
    found = told(refit, record.seconds) if refit and record.refitted else choice.reason
    return _Made(
        record=record,
        blobs=(engine, *blobs, *((weights,) if weights else ())),
        findings=(found,) if found else (),
        layers=donor.layers if donor else None,
        refit_of=donor.sha256 if donor else "",
        weights_sha256=weights.sha256 if weights else "",
    )


def _unremembered(reason: str) -> str:
    return (
        f"it cannot be remembered that this engine was built here ({reason}): it is not loaded "
        f"unsigned, and no key signs it. Name a writable folder with {STATE_VARIABLE}"
    )


def _asking_for(recipe: Recipe, precision: Precision) -> Recipe:
    """Return the recipe of an engine: a baseline has another precision than the recipe."""
    if precision == recipe.quantization.precision:
        return recipe
    quantization = msgspec.structs.replace(
        recipe.quantization.without_unused(precision),
        precision=precision,
        trt_cache=None,
        sparsity=None,
        keep_dense=(),
    )
    return msgspec.structs.replace(recipe, quantization=quantization)


def requested(layers: Layers, asked: Mapping[str, str]) -> Layers:
    """Return ``layers`` with what the network asks of their products: the first one's type."""
    return msgspec.structs.replace(
        layers,
        layers=tuple(
            msgspec.structs.replace(
                layer, requested=next((asked[n] for n in layer.nodes if n in asked), "")
            )
            if layer.compute
            else layer
            for layer in layers.layers
        ),
    )


def _mac_shares(layers: Layers, macs: Mapping[str, int]) -> dict[str, float]:
    """Return the share of multiply-accumulates by the precision of their layers, 0 to 1.

    A node that several layers cover counts where the first of them computes it.
    """
    where: dict[str, str] = {}
    for layer in layers.layers:
        if layer.compute:
            for node in layer.nodes:
                where.setdefault(node, layer.precision)
    counts: dict[str, int] = {}
    for name, count in macs.items():
        if name in where:
            counts[where[name]] = counts.get(where[name], 0) + count
    total = sum(macs.values())
    return {word: round(count / total, 6) for word, count in sorted(counts.items()) if total}


def _fused(layers: Layers, quantizers: frozenset[str]) -> int:
    """Return how many layers cover more than one operator beside Q/DQ."""
    return sum(len(set(layer.nodes) - quantizers) > 1 for layer in layers.layers)
