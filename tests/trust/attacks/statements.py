"""Attacks by what was signed: a release, provenance and gates that say something else."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.trust.attacks.cases import add, add_all, case, promoters, ruled, tried
from tests.trust.forge import BUILDER, MODEL, NARROW, NOW, POLICY, PROMOTER, SEQ
from trtbuild.trust.statements import second

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trust.attacks.cases import Make
    from tests.trust.forge import Attempt, Doc, Forge


# T05, statements


def in_statement(name: str, change: Callable[[Doc], object]) -> Make:
    return lambda f: f.changed(lambda docs: change(docs[name]))


def in_release(change: Callable[[Doc], object]) -> Make:
    return in_statement("release", change)


def of_release(**changes: object) -> Make:
    return in_release(lambda s: s["predicate"].update(changes))


add_all(
    "T05",
    unknown_predicate_type=in_release(lambda s: s.update(predicateType="urn:other")),
    predicate_type_that_is_no_text=in_release(lambda s: s.update(predicateType=["a"])),
    statement_of_version_0_1=in_release(
        lambda s: s.update({"_type": "https://in-toto.io/Statement/v0.1"})
    ),
    unknown_field_in_statement=in_release(lambda s: s.update(note="x")),
    unknown_field_in_release=of_release(force=True),
    missing_field=in_release(lambda s: s["predicate"].pop("expires")),
    predicate_that_is_no_object=in_release(lambda s: s.update(predicate=[])),
    model_that_is_a_path=of_release(model="../../etc"),
    model_with_a_line_break=of_release(model=f"{MODEL}\n"),
    empty_model=of_release(model=""),
    target_that_is_a_path=of_release(target="onnxruntime:../x"),
    seq_of_zero=of_release(seq=0),
    seq_that_is_true=of_release(seq=True),
    seq_that_is_a_fraction=of_release(seq=1000.5),
    seq_as_text=of_release(seq="1000"),
    no_such_day=of_release(expires="2099-02-30T00:00:00Z"),
    made_on_no_such_day=of_release(created="2026-02-30T00:00:00Z"),
    time_with_an_offset=of_release(expires="2099-01-01T00:00:00+00:00"),
    digest_in_capitals=of_release(gates="A" * 64),
    no_manifest_among_the_subjects=in_release(lambda s: s["subject"].pop()),
    three_subjects=in_release(lambda s: s["subject"].append(dict(s["subject"][0]))),
    two_engines_as_subjects=in_release(lambda s: s["subject"][1].update(name="engine")),
    subject_with_another_algorithm=in_release(
        lambda s: s["subject"][0].update(digest={"md5": "0" * 32})
    ),
)


def respelled(change: Callable[[bytes], bytes]) -> Make:
    return lambda f: f.respelled("release", change)


def numbered(text: bytes) -> Make:
    """Return tries whose release has another text in the place of its number."""
    return respelled(lambda p: p.replace(b'"seq":%d' % SEQ, b'"seq":' + text, 1))


def called(name: bytes) -> Make:
    return respelled(lambda p: p.replace(b"classifier", name, 1))


add_all(
    "T05",
    duplicate_key_in_payload=numbered(b'999999,"seq":%d' % SEQ),
    duplicate_key_spelled_with_an_escape=respelled(
        lambda p: p.replace(b'"seq":', b'"s\\u0065q":999999,"seq":', 1)
    ),
    nested_too_deep=numbered(b"[" * 33 + b"]" * 33),
    integer_beyond_a_double=numbered(b"9007199254740993"),
    ten_thousand_digits=numbered(b"9" * 10_000),
    not_a_number=numbered(b"NaN"),
    infinite_number=numbered(b"1e999"),
    invalid_utf8_in_payload=called(b"classifi\xff"),
    unpaired_surrogate=called(b"\\ud800"),
    byte_order_mark=respelled(lambda p: b"\xef\xbb\xbf" + p),
    payload_that_is_empty=respelled(lambda _: b""),
    payload_that_is_text=respelled(lambda _: b"hello"),
    payload_that_is_null=respelled(lambda _: b"null"),
)

# T07, replay

_OLD = NOW - timedelta(days=8)
add_all(
    "T07",
    expired=of_release(expires=second(NOW - timedelta(seconds=1))),
    from_the_future=of_release(created=second(NOW + timedelta(minutes=30))),
    largest_number=of_release(seq=2**53 - 1),
    number_of_tomorrow=of_release(seq=SEQ + 86400),
    number_of_another_time_than_its_making=of_release(seq=SEQ - 86400),
    too_old_for_the_policy=tried(
        of_release(created=second(_OLD), seq=int(_OLD.timestamp())),
        policy=ruled("max_age_days = 7"),
    ),
)

# T08, statements about something else


def other_subject(name: str, index: int) -> Make:
    return in_statement(name, lambda s: s["subject"][index]["digest"].update(sha256="e" * 64))


for _name in ("provenance", "gates", "release"):
    add("T08", f"{_name}_of_another_engine", other_subject(_name, 0))
    add("T08", f"{_name}_of_another_manifest", other_subject(_name, 1))
add_all(
    "T08",
    release_of_another_key=of_release(key="e" * 64),
    release_for_another_target=of_release(target="onnxruntime:other"),
    another_model_is_asked_for=tried(model="other"),
)


def signed_as(model: str, make: Callable[[Forge, dict[str, bytes]], Attempt]) -> Make:
    """Return tries whose engine was signed as another model than it was built as."""

    def change(docs: Doc) -> None:
        docs["release"]["predicate"]["model"] = model
        definition = docs["provenance"]["predicate"]["buildDefinition"]
        definition["externalParameters"]["model"] = model

    return lambda f: make(f, f.payloads(change))


add_all(
    "T08",
    signed_as_another_model=signed_as("x", lambda f, p: f.attempt(p)),
    builder_that_chooses_a_rule_without_promoters=tried(
        signed_as("x", lambda f, p: f.attempt(p, release=(BUILDER,))),
        policy=POLICY.replace('names = ["*"]', f'names = ["{MODEL}"]')
        + '[[models]]\nnames = ["*"]\n',
    ),
    key_of_another_namespace_that_signs_in_its_own=tried(
        signed_as("other-1", lambda f, p: f.attempt(p, **dict.fromkeys(p, (NARROW,)))),
        policy=promoters(0),
    ),
)

# T09, provenance


def of_provenance(change: Callable[[Doc], object]) -> Make:
    return in_statement("provenance", lambda s: change(s["predicate"]["buildDefinition"]))


def of_parameters(change: Callable[[Doc], object]) -> Make:
    return of_provenance(lambda definition: change(definition["externalParameters"]))


add_all(
    "T09",
    built_on_no_such_day=in_statement(
        "provenance",
        lambda s: s["predicate"]["runDetails"]["metadata"].update(
            finishedOn="2026-02-30T00:00:00Z"
        ),
    ),
    another_build_type=of_provenance(lambda d: d.update(buildType="urn:other")),
    unknown_external_parameter=of_parameters(lambda p: p.update(debug=True)),
    missing_external_parameter=of_parameters(lambda p: p.pop("target")),
    another_preimage=of_parameters(lambda p: p["preimage"].update(network_sha256="2" * 64)),
    preimage_with_one_field_more=of_parameters(lambda p: p["preimage"].update(extra=1)),
    provenance_of_another_model=of_parameters(lambda p: p.update(model="other")),
    provenance_of_another_key=of_parameters(lambda p: p.update(key="3" * 64)),
    provenance_for_another_target=of_parameters(lambda p: p.update(target="onnxruntime:b")),
    release_names_other_provenance=of_release(provenance="4" * 64),
    builder_that_is_not_allowed=tried(policy=ruled('builder_ids = ["urn:test:other"]')),
)


def without(index: int) -> Make:
    """Return tries without one of the three statements."""

    def make(f: Forge) -> Attempt:
        good = f.attempt()
        del good.envelopes[index]
        return good

    return make


add("T09", "provenance_taken_away", without(0))


@case("T09")
def gates_in_the_place_of_provenance(f: Forge) -> Attempt:
    digest = hashlib.sha256(f.payloads()["gates"]).hexdigest()
    return of_release(provenance=digest)(f)


# T10, gates


def of_gates(**changes: object) -> Make:
    return in_statement("gates", lambda s: s["predicate"].update(changes))


def gate(*, passed: bool = True, skipped: bool = False) -> list[Doc]:
    return [{"name": "max_drop", "passed": passed, "skipped": skipped}]


_MUST = ruled('gates = ["max_drop"]')
add_all(
    "T10",
    verification_failed=of_gates(passed=False),
    one_gate_failed_though_all_is_called_passed=of_gates(gates=gate(passed=False)),
    gate_of_the_policy_was_skipped=tried(of_gates(gates=gate(skipped=True)), policy=_MUST),
    gate_of_the_policy_is_missing=tried(of_gates(gates=[]), policy=_MUST),
    measured_by_a_twin_only=tried(of_gates(measuredOn="twin"), policy=ruled("twins = false")),
    release_names_other_gates=of_release(gates="5" * 64),
    gates_taken_away=without(1),
)

# T16, revoked


def revoked(what: str, digest: Callable[[Forge], str]) -> Make:
    return lambda f: replace(
        f.attempt(), policy=f'{POLICY}[[revoked]]\n{what} = "{digest(f)}"\nreason = "stolen"\n'
    )


@case("T16")
def revoked_builder(f: Forge) -> Attempt:
    own = f.attempt(None, release=(BUILDER,))
    return replace(revoked("key", lambda _: BUILDER.public.keyid)(f), envelopes=own.envelopes)


add("T16", "revoked_promoter", revoked("key", lambda _: PROMOTER.public.keyid))
add("T16", "revoked_engine", revoked("engine", lambda f: f.candidate.sha256))
