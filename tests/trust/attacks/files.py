"""Attacks by the files of a machine: the policy, the lockfile, what was loaded before."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.trust.attacks.cases import add, add_all, case, good, rekeyed, ruled, tried
from tests.trust.forge import (
    BUILDER,
    MODEL,
    POLICY,
    PROMOTER,
    SECOND_PROMOTER,
    SEQ,
    STRANGER,
    table,
)
from trtbuild.canonical import encode
from trtbuild.store import make_record
from trtbuild.store.resolve import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trust.attacks.cases import Make
    from tests.trust.forge import Attempt, Forge
    from trtbuild.trust.keys import PrivateKey

# T01, the policy


def rsa_key() -> str:
    public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return base64.b64encode(public.public_bytes(serialization.Encoding.DER, form)).decode()


POLICIES = {
    "unknown_key_in_policy": "allow = true\n" + POLICY,
    "no_schema": POLICY.replace("schema = 1\n", ""),
    "schema_of_the_future": POLICY.replace("schema = 1", "schema = 2"),
    "not_toml": POLICY + "[[keys]\n",
    "unknown_word_for_unsigned": 'unsigned = "allow"\n' + POLICY,
    "one_key_with_two_roles": POLICY + table("again", BUILDER, "promoter"),
    "range_that_is_none": ruled('backends = {onnxruntime = "new"}'),
    "no_builder_needed": ruled("builders = 0"),
    "revokes_nothing": POLICY + "[[revoked]]\n",
    "pattern_with_a_slash": POLICY + table("slash", STRANGER, "builder", "../*"),
    "key_of_another_algorithm": POLICY
    + table("rsa", STRANGER, "builder").replace(STRANGER.public.text, rsa_key()),
}
add_all("T01", **{name: tried(policy=text) for name, text in POLICIES.items()})
add("T01", "policy_that_others_may_write", tried(policy_mode=0o666))

# T02, the lockfile


def locked(f: Forge, *, engine: str = "", model: str = MODEL, seq: int = SEQ) -> str:
    target = str(f.candidate.preimage.target)
    return (
        f'schema = 1\n[engines."{model}"."{target}"]\n'
        f'engine = "{engine or f.candidate.sha256}"\nseq = {seq}\n'
    )


def with_lock(text: Callable[[Forge], str], make: Make = good) -> Make:
    return lambda f: replace(make(f), lock=text(f))


def for_another_target(f: Forge) -> str:
    return locked(f).replace(str(f.candidate.preimage.target), "onnxruntime:other")


LOCKS: dict[str, Callable[[Forge], str]] = {
    "engine_that_the_lock_does_not_pin": lambda f: locked(f, engine="d" * 64),
    "lock_without_schema": lambda f: locked(f).replace("schema = 1\n", ""),
    "lock_with_unknown_field": lambda f: locked(f) + "trust = true\n",
    "lock_with_a_path_as_model": lambda f: locked(f, model="../m"),
    "lock_with_a_short_digest": lambda f: locked(f, engine="abc"),
    "lock_with_a_negative_seq": lambda f: locked(f, seq=-1),
    "lock_that_is_no_toml": lambda _: "{",
    "empty_lock": lambda _: "",
}
add_all("T02", **{name: with_lock(text) for name, text in LOCKS.items()})
add("T02", "lock_for_another_target", with_lock(for_another_target, tried(engine=MODEL)))
add("T02", "another_model_is_asked_for_than_is_pinned", with_lock(locked, tried(model="other")))
add("T08", "model_that_the_lock_does_not_mean", with_lock(lambda f: locked(f, model="other")))


@case("T02")
def pinned_digest_under_which_another_engine_stands(f: Forge) -> Attempt:
    pin = f.manifest.sha256
    data = f.store.read(pin) + b"\xa2\x06\x01x"  # a field that readers skip
    lock = locked(f)
    next((f.store.top / "ac" / "plan").rglob(pin)).unlink()
    f.use(f.record_of(f.manifest, pin, data))
    return replace(f.attempt(), engine=MODEL, lock=lock)


@case("T08")
def pinned_digest_whose_plan_names_another_engine(f: Forge) -> Attempt:
    pin = f.manifest.sha256
    lock = locked(f)
    data = f.store.read(pin) + b"\xa2\x06\x01x"
    f.put(msgspec.structs.replace(f.manifest, preimage=rekeyed(f)), data)
    next((f.store.top / "ac" / "plan").rglob(pin)).unlink()
    f.store.put(make_record("plan", pin, {}, Plan(engine_key=f.record.key)))
    return replace(f.attempt(), engine=MODEL, lock=lock)


# T06, replay


def remembered(place: str, seq: int, *keys: PrivateKey) -> bytes:
    """Return the bytes of a memory of one release."""
    keyids = [key.public.keyid for key in keys or (PROMOTER,)]
    return encode({"schema": 2, "releases": {place: {"seq": seq, "keys": keyids}}})


def after_later(f: Forge, *keys: PrivateKey) -> Attempt:
    """Return a try after a later release was loaded."""
    place = f"{MODEL}/{f.candidate.preimage.target}/{f.candidate.precision}"
    return replace(f.attempt(), seen=remembered(place, SEQ + 1, *keys))


add_all(
    "T06",
    older_than_what_was_loaded=after_later,
    older_than_the_lock=with_lock(lambda f: locked(f, seq=SEQ + 1)),
    older_than_what_a_revoked_key_signed_with_another=tried(
        lambda f: after_later(f, STRANGER, SECOND_PROMOTER),
        policy=f'{POLICY}[[revoked]]\nkey = "{STRANGER.public.keyid}"\n',
    ),
)


@case("T06")
def older_than_what_an_earlier_version_loaded(f: Forge) -> Attempt:
    place = f"{MODEL}/{f.candidate.preimage.target}"
    return replace(f.attempt(), seen=encode({"schema": 1, "releases": {place: SEQ + 1}}))


# T18, the memory

MEMORIES = {
    "memory_that_is_no_json": b"{",
    "memory_with_a_duplicate": b'{"releases":{},"releases":{},"schema":1}',
    "memory_of_the_future": b'{"releases":{},"schema":3}',
    "memory_without_keys": b'{"releases":{"m/t/int8":{"seq":1}},"schema":2}',
    "memory_with_a_number_of_the_second_schema_in_the_first": (
        b'{"releases":{"m/t":{"keys":[],"seq":1}},"schema":1}'
    ),
    "memory_of_release_zero": b'{"releases":{"m/t/int8":{"keys":[],"seq":0}},"schema":2}',
    "empty_memory": b"",
}
add_all("T18", **{name: tried(seen=seen) for name, seen in MEMORIES.items()})
add(
    "T18",
    "memory_that_others_may_write",
    tried(seen=encode({"schema": 1, "releases": {}}), seen_mode=0o666),
)
