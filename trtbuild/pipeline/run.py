"""One run: from a recipe to engines in the store and a report of what they compute and cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from trtbuild.backends import backend
from trtbuild.engine import PACKED
from trtbuild.errors import BuildError, TrustError
from trtbuild.pipeline import recall
from trtbuild.pipeline.cast import cast
from trtbuild.pipeline.chosen_key import chosen_key
from trtbuild.pipeline.context import working
from trtbuild.pipeline.engines import Built, build_engine, profile_of
from trtbuild.pipeline.keeping import policy_dependencies, policy_of
from trtbuild.pipeline.legacy import legacy
from trtbuild.pipeline.memo import merged
from trtbuild.pipeline.network import Network
from trtbuild.pipeline.packing import packed
from trtbuild.pipeline.precision import baseline_of, scheme_of, weight_scheme_of
from trtbuild.pipeline.quantizing import quantized
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.pipeline.sparse import expect_sparse, sparsified
from trtbuild.pipeline.verification import (
    Race,
    accuracies,
    measured_on,
    timing,
    verification,
    write_outputs,
)
from trtbuild.recipe import recipe_from_json
from trtbuild.report.document import (
    EngineReport,
    Finding,
    Report,
    SkippedTarget,
    SourceReport,
)
from trtbuild.report.layer_findings import layer_findings
from trtbuild.store import BlobLostError
from trtbuild.store.counters import Tally, count
from trtbuild.store.record import OTHER_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.engine import Manifest, Precision, ShapeRange
    from trtbuild.graph import Graph
    from trtbuild.pipeline.cast import Low
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.legacy import Legacy
    from trtbuild.pipeline.source import Data, ExportedSource
    from trtbuild.pipeline.targets import Plan, Planned
    from trtbuild.pipeline.verification import Timing
    from trtbuild.recipe import Recipe
    from trtbuild.report.document import SparsityReport, Verification
    from trtbuild.sources.dependencies import Dependencies
    from trtbuild.store import Store


_ATTEMPTS = 16
"""More than a run has stages: each may find its file damaged."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What to do, for :func:`run`; ``fresh`` measures again what was measured before.

    ``outputs`` is where the outputs of the first engine and the framework go, if anywhere.
    """

    recipe: Recipe
    plan: Plan
    store: Store
    say: Callable[[str], None]
    fresh: bool = False
    outputs: Path | None = None


def run(work: Work) -> Report:
    """Build, store and verify the engines of a recipe; return the report, gates judged.

    What the store has is not computed again. A failed gate is a fact of the report, not an
    error: its ``exit_code`` says it.

    Raises:
        TrtbuildError: anything that a user must correct; what was stored stays valid.
    """
    report, dependencies = _whole(work, None)
    question = recall.question_of(work.recipe, work.plan)
    if dependencies is not None:
        recall.remember(work.store, question, dependencies, report)
    else:
        count(work.store, Tally(tier="local", kind="run", outcome="bypass", count=1))
    return _with_incidents(report, work.store)


def verify(work: Work, manifest: Manifest) -> Report:
    """Measure an engine of the store again and judge it; nothing is built but its baseline.

    Raises:
        TrustError: the recipe leads to another network now than the one the engine was built
            of, so that its model or data are not what they were.
        TrtbuildError: as :func:`run`.
    """
    return _with_incidents(_whole(work, manifest)[0], work.store)


def _whole(
    work: Work, manifest: Manifest | None, attempts: int = _ATTEMPTS
) -> tuple[Report, Dependencies | None]:
    """Return the report of a run, begun again where the store lost a file under its feet.

    Without dependencies where it must not be remembered, since a device throttled.
    Such a file was set aside, so that its record is a miss now: all but that is found again.
    """
    try:
        with working(work.recipe, work.store, work.say) as context:
            own = replace(_as_built(context, manifest), signs=bool(chosen_key()))
            return _Run(own, work, manifest).report()
    except BlobLostError as error:
        if attempts == 1:
            raise
        work.say(str(error))
    return _whole(work, manifest, attempts - 1)


def _as_built(context: Context, manifest: Manifest | None) -> Context:
    """Return ``context`` with the budget that the engine was built within, not judged by."""
    if manifest is None:
        return context
    return replace(context, budget=recipe_from_json(manifest.recipe).gates.max_drop)


def _with_incidents(report: Report, store: Store) -> Report:
    """Add what the store got over. A remembered report has none: they happened once."""
    old = sum(OTHER_VERSION in each.reason for each in store.incidents)
    found = [
        Finding(stage="store", text=f"{each.path}: {each.reason}")
        for each in store.incidents
        if OTHER_VERSION not in each.reason
    ]
    if old:
        text = f"{old} results of another version of trtbuild were set aside and made again"
        found.append(Finding(stage="store", text=text))
    return msgspec.structs.replace(report, findings=(*report.findings, *found))


class _Run:
    """One run under way; with a ``manifest`` that engine is verified and none is built."""

    def __init__(self, context: Context, work: Work, manifest: Manifest | None = None) -> None:
        self._context = context
        self._work = work
        self._manifest = manifest
        self._throttled = False
        self._precision: Precision = work.recipe.quantization.precision
        self._skipped = [
            SkippedTarget(target=item.target, reason=item.reason) for item in work.plan.skipped
        ]

    def report(self) -> tuple[Report, Dependencies | None]:
        context = self._context
        policy_of(context.recipe)  # a mistake in it is told before any work
        data = open_data(context)
        source = export_source(context, data)
        graph = optimized(context, source.graph)
        profile = profile_of(context, graph)
        cache = legacy(context, source.graph)
        sparse, sparsity = sparsified(context, graph, data)
        networks = self._networks(sparse, data, cache)
        self._expect_sparse(networks, sparsity)
        built = self._found(networks) if self._manifest else self._build(networks, profile)
        for engine, _ in built:
            self._find_in_layers(engine)
        reports = self._verified(source, data, graph, built, profile)
        report = Report(
            recipe=context.recipe.name,
            source=SourceReport(
                framework=context.recipe.source.framework, digest=source.graph.sha256
            ),
            stages=tuple(context.stages),
            engines=tuple(reports),
            export_parity=source.parity,
            calibration=tuple(
                row for name in dict.fromkeys(networks) for row in networks[name].rows
            ),
            policies=tuple(
                network.policy for network in networks.values() if network.policy is not None
            ),
            sparsity=sparsity,
            skipped_targets=tuple(self._skipped),
            findings=tuple(context.findings),
            evaluation_sha256=data.info.evaluation_sha256 if data is not None else "",
        )
        dependencies = merged(source.dependencies, policy_dependencies(context.recipe))
        if data is not None:
            dependencies = merged(dependencies, data.dependencies)
        if cache is not None:
            dependencies = merged(dependencies, cache.dependencies)
        return report, None if self._throttled else dependencies

    def _networks(
        self, graph: Graph, data: Data | None, cache: Legacy | None
    ) -> dict[str, Network]:
        """Return the network of each backend, by the backend's name."""
        context, precision = self._context, self._precision
        names = dict.fromkeys(each.target.backend for each in self._work.plan.planned)
        if precision in ("int8", "fp8"):
            schemes = {name: scheme_of(context.recipe, name) for name in names}
            found = quantized(context, graph, data, tuple(schemes.values()), cache)
            return {name: found[scheme.name] for name, scheme in schemes.items()}
        if precision in PACKED:
            return {
                name: packed(context, graph, data, weight_scheme_of(context.recipe, name))
                for name in names
            }
        if precision in ("fp16", "bf16"):
            low: Low = "bf16" if precision == "bf16" else "fp16"
            return dict.fromkeys(names, cast(context, graph, data, low))
        return dict.fromkeys(names, Network(graph=graph, twin=graph, fused=True, rows=()))

    def _expect_sparse(
        self, networks: dict[str, Network], sparsity: SparsityReport | None
    ) -> None:
        if sparsity is None:
            return
        for name, network in networks.items():
            needed = "sparse_weights" in backend(name).OPTIONS
            expect_sparse(self._context, network.graph, sparsity, needed=needed)

    def _build(
        self, networks: dict[str, Network], profile: tuple[ShapeRange, ...]
    ) -> list[tuple[Built, Network]]:
        built = []
        failed: list[BuildError] = []
        for planned in self._work.plan.planned:
            network = networks[planned.target.backend]
            try:
                engine = build_engine(
                    self._context, planned, network.graph, profile, self._precision
                )
            except BuildError as error:
                if planned.required:
                    raise
                reason = SkippedTarget(target=str(planned.target), reason=str(error))
                self._skipped.append(reason)
                failed.append(error)
                continue
            built.append((engine, network))
        if not built:
            raise failed[0]
        return built

    def _find_in_layers(self, built: Built) -> None:
        target = built.planned.target
        for line in layer_findings(built.manifest.layers, target):
            self._context.find(f"build {target} {self._precision}", line)

    def _found(self, networks: dict[str, Network]) -> list[tuple[Built, Network]]:
        planned = self._work.plan.planned[0]
        network = networks[planned.target.backend]
        manifest = self._manifest
        if manifest is None or manifest.preimage.network_sha256 != network.graph.sha256:
            raise TrustError(
                f"{self._context.recipe.name}: the recipe now gives the network "
                f"{network.graph.sha256[:12]}, the engine was built of another: its model, "
                f"data or options have changed since. Build it again, or give the recipe it had"
            )
        return [(Built(planned=planned, manifest=manifest, cached=True), network)]

    def _verified(
        self,
        source: ExportedSource,
        data: Data | None,
        graph: Graph,
        built: list[tuple[Built, Network]],
        profile: tuple[ShapeRange, ...],
    ) -> list[EngineReport]:
        context = self._context
        if data is None:
            reason = "there is no data to run it on"
            context.find("verify", "nothing was compared with the framework: there is no data")
            return [
                _engine_report(
                    context, engine, verification(context, engine, None, None, reason)
                )
                for engine, _ in built
            ]
        if self._work.outputs is not None:
            write_outputs(context, source, data, built[0], self._work.outputs)
        found = accuracies(context, source, data, built, fresh=self._work.fresh)
        reports = []
        for (engine, _), accuracy in zip(built, found, strict=True):
            times: Timing | None = None
            no_latency = engine.planned.cannot_run
            if measured_on(engine) == "device":
                baseline = self._baseline(engine.planned, data, graph, profile)
                race = Race(
                    engine=engine, baseline=baseline, data=data, graph=graph, profile=profile
                )
                times = timing(context, race, fresh=self._work.fresh)
                self._throttled |= bool(times.throttled)
            judged = verification(context, engine, accuracy, times, no_latency)
            reports.append(_engine_report(context, engine, judged))
        return reports

    def _baseline(
        self, planned: Planned, data: Data, graph: Graph, profile: tuple[ShapeRange, ...]
    ) -> Built | None:
        """Return the unquantized engine that a speed-up is over, None for an engine in FP32."""
        precision = baseline_of(planned.target, self._precision)
        if precision is None:
            return None
        if precision == "fp16":
            graph = cast(self._context, graph, data, "fp16").graph
        return build_engine(self._context, planned, graph, profile, precision)


def _engine_report(context: Context, built: Built, judged: Verification) -> EngineReport:
    manifest = built.manifest
    return EngineReport(
        key=manifest.key,
        sha256=manifest.sha256,
        path=str(context.store.path(manifest.sha256)),
        bytes=manifest.bytes,
        backend=manifest.preimage.target.backend,
        backend_version=manifest.preimage.fingerprint.version,
        arch=manifest.preimage.target.arch,
        precision_requested=manifest.precision_requested,
        precision_achieved=manifest.layers.precision_achieved,
        int8_mac_share=manifest.int8_mac_share,
        mac_share=manifest.mac_share,
        weights_packed=manifest.layers.weights_packed,
        fused_layers=manifest.fused_layers,
        cached=built.cached,
        verification=judged,
    )
