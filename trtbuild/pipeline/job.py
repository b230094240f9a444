"""The two jobs that commands and Python callers ask for: build a recipe, verify an engine.

A full cache hit is answered here. What does the work is imported only on a miss, inside the
functions: this module is a door (``docs/decisions/0005-memo-and-doors.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from trtbuild.backends import backend, runtime
from trtbuild.canonical import digest
from trtbuild.engine import Manifest
from trtbuild.errors import UsageError
from trtbuild.pipeline.building import with_pinned
from trtbuild.pipeline.chosen_key import chosen_key
from trtbuild.pipeline.recall import question_of, recall
from trtbuild.pipeline.targets import Plan, Planned, plan_targets
from trtbuild.recipe import recipe_from_json
from trtbuild.store import Store, find_engine
from trtbuild.store.counters import Tally, count
from trtbuild.store.statements import statements

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trtbuild.recipe import Recipe
    from trtbuild.report.document import EngineSignature, Report


def quiet(_: str) -> None:
    """Say nothing of what begins."""


def build_recipe(
    recipe: Recipe,
    store: str,
    *,
    strict: bool = False,
    say: Callable[[str], None] = quiet,
) -> Report:
    """Return the report of a recipe: of an earlier run if nothing changed, else of one now.

    With ``strict`` a target that cannot be built here is an error. ``say`` is told in a few
    words what begins.

    Raises:
        TrtbuildError: anything that a user must correct.
    """
    opened = Store.open(store).settled(say)
    check_signable(recipe.name)
    plan = with_pinned(plan_targets(recipe, strict=strict), opened)
    return with_signatures(opened, _report(recipe, plan, opened, say))


def _report(recipe: Recipe, plan: Plan, opened: Store, say: Callable[[str], None]) -> Report:
    question = question_of(recipe, plan)
    known = recall(opened, question)
    if known is not None:
        return known
    from trtbuild.store.lease import flight

    # One process does all of it, exports and measurements too; no record appears for this
    # key, so that whoever waited asks again in its turn.
    with flight(opened, "run", digest("run/v1", question)):
        known = recall(opened, question)
        if known is not None:
            return known
        from trtbuild.pipeline.run import Work, run

        count(opened, Tally(tier="local", kind="run", outcome="miss", count=1))
        report = run(Work(recipe=recipe, plan=plan, store=opened, say=say))
    from trtbuild.store.automatic import collect_if_asked

    collect_if_asked(opened, say)
    return report


def verify_engine(
    engine: str,
    store: str,
    recipe: Recipe | None = None,
    *,
    say: Callable[[str], None] = quiet,
    outputs: Path | None = None,
) -> Report:
    """Measure an engine of the store anew and return the report, gates judged.

    ``recipe`` says where model and data are; without it, it is the one the engine was built
    for first. ``outputs`` is a file to write what framework and engine compute of one batch
    to, as Polygraphy run results.

    Raises:
        TrtbuildError: anything that a user must correct.
    """
    opened = Store.open_existing(store).settled(say)
    manifest = find_engine(opened, engine).read(Manifest)
    given = recipe or recipe_from_json(manifest.recipe)
    if given.quantization.precision != manifest.precision_requested:
        raise UsageError(
            f"engine {manifest.key[:12]} is {manifest.precision_requested}, the recipe "
            f"{given.name} asks for {given.quantization.precision}. Give its own recipe"
        )
    target = manifest.preimage.target
    cannot_run = runtime(target.backend).cannot_run(target, manifest.preimage.settings)
    fingerprint = manifest.preimage.fingerprint
    if not cannot_run:
        from trtbuild.runtime.machine import preflight

        preflight(manifest)
        # Its baseline is built by what is installed here, and must say so.
        fingerprint = backend(target.backend).fingerprint(target)
    planned = Planned(
        target=target,
        required=True,
        cannot_run=cannot_run,
        settings=manifest.preimage.settings,
        fingerprint=fingerprint,
    )
    from trtbuild.pipeline.run import Work, verify

    plan = Plan(planned=(planned,), skipped=())
    work = Work(recipe=given, plan=plan, store=opened, say=say, fresh=True, outputs=outputs)
    return with_signatures(opened, verify(work, manifest), sign=False)


def check_signable(model: str) -> None:
    """Refuse, before any work, a recipe whose engines cannot be signed though a key is set.

    Raises:
        UsageError: the name cannot be signed, or the key cannot be used.
        TrustError: T01, the policy cannot be used.
    """
    if not chosen_key():
        return
    from trtbuild.pipeline.signing import check_model, signer
    from trtbuild.runtime.trust_files import load_policy, policy_name

    check_model(model)
    signer(chosen_key())
    load_policy(policy_name(""))


def with_signatures(store: Store, report: Report, *, sign: bool = True) -> Report:
    """Return a report that says who signed its engines, signed now if a key is configured.

    Without a key and without statements this imports no cryptography: most hits are such.

    Raises:
        UsageError: the key cannot be used.
        TrustError: T01, the policy cannot be used.
        StoreError: the store cannot be read or written.
    """
    key = chosen_key() if sign else ""
    if key:
        from trtbuild.pipeline.signing import sign_report, signer

        unsigned = sign_report(store, report, signer(key))
        report = replace(report, findings=(*report.findings, *unsigned))
    return replace(
        report,
        engines=tuple(
            replace(engine, signatures=signatures_of(store, engine.sha256))
            for engine in report.engines
        ),
    )


def signatures_of(store: Store, engine_sha256: str) -> tuple[EngineSignature, ...]:
    """Return who signed an engine, for people to read; nothing where nobody did.

    Raises:
        TrustError: T01, the policy cannot be used.
        StoreError: the store cannot be read.
    """
    envelopes = statements(store, engine_sha256)
    if not envelopes:
        return ()
    from trtbuild.pipeline.signatures import signatures

    return signatures(envelopes)
