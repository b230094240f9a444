"""Attacks by engines: records, settings, versions and bytes; and engines that nobody signed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from tests.trust.attacks.cases import LOCAL, add, add_all, case, good, rekeyed, ruled, tried
from tests.trust.forge import POLICY
from trtbuild.store import make_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.trust.attacks.cases import Make
    from tests.trust.forge import Attempt, Forge
    from trtbuild.engine import Manifest
    from trtbuild.store import Blob

_OTHER = "f" * 64

# T08, records


@case("T08")
def record_under_a_foreign_key(f: Forge) -> Attempt:
    f.store.put(make_record("engine", _OTHER, f.manifest.preimage, f.manifest, f.record.blobs))
    return replace(f.attempt(), engine=_OTHER)


@case("T08")
def record_whose_manifest_lies_about_its_key(f: Forge) -> Attempt:
    f.record_of(f.manifest, _OTHER)
    return replace(f.attempt(), engine=_OTHER)


@case("T08")
def signed_record_whose_manifest_has_another_key(f: Forge) -> Attempt:
    manifest = msgspec.structs.replace(f.manifest, key=_OTHER, preimage=rekeyed(f))
    return signed_record(f, manifest)


@case("T08")
def signed_record_with_other_bytes_of_one_size(f: Forge) -> Attempt:
    name = rekeyed(f)
    manifest = msgspec.structs.replace(f.manifest, key=name.digest, preimage=name)
    data = f.store.read(f.manifest.sha256)
    other = f.store.put_bytes("engine", data[:-1] + bytes([data[-1] ^ 1]))
    return signed_record(f, manifest, other)


def signed_record(f: Forge, manifest: Manifest, *blobs: Blob) -> Attempt:
    """Return a try with a record that nobody would write, and with all signatures of it."""
    preimage = manifest.preimage
    stored = make_record("engine", preimage.digest, preimage, manifest, blobs or f.record.blobs)
    f.record, f.manifest = f.store.put(stored), manifest
    f.candidate = msgspec.structs.replace(
        f.candidate,
        key=preimage.digest,
        preimage=preimage,
        manifest_sha256=hashlib.sha256(f.record.value).hexdigest(),
    )
    return f.attempt()


@case("T08")
def record_and_manifest_under_a_key_that_is_not_their_preimages(f: Forge) -> Attempt:
    f.use(f.record_of(f.manifest, _OTHER))
    return f.attempt()


@case("T08")
def unsigned_record_under_a_key_that_is_not_its_preimages(f: Forge) -> Attempt:
    return unsigned(record_and_manifest_under_a_key_that_is_not_their_preimages)(f)


@case("T08")
def record_with_the_bytes_of_another_engine(f: Forge) -> Attempt:
    name = rekeyed(f)
    other = f.store.put_bytes("engine", b"\x08 other bytes")
    manifest = msgspec.structs.replace(f.manifest, key=name.digest, preimage=name)
    f.store.put(make_record("engine", name.digest, name, manifest, (other,)))
    return replace(f.attempt(), engine=name.digest)


@case("T08")
def manifest_changed_after_signing(f: Forge) -> Attempt:
    before = f.attempt()
    next((f.store.top / "ac" / "engine").rglob(f.record.key)).unlink()
    f.put(msgspec.structs.replace(f.manifest, outputs=f.manifest.inputs))
    return before


# T11, code inside


def built_with(*settings: tuple[str, int | bool | str]) -> Make:
    def make(f: Forge) -> Attempt:
        f.with_settings(*settings)
        return f.attempt()

    return make


_PLUGIN, _LEAN = built_with(("plugins", "6" * 64)), built_with(("version_compatible", True))
add_all(
    "T11",
    embedded_plugin=built_with(("plugins_to_serialize", "lib.so")),
    plugin_that_is_not_listed=_PLUGIN,
    lean_runtime_inside=_LEAN,
    second_plugin_that_is_not_listed=tried(
        built_with(("plugins", "6" * 64 + "," + "7" * 64)),
        policy=POLICY + f'[plugins]\nallowed = ["{"6" * 64}"]\n',
    ),
)

# T12, versions and machines


def another(field: str, **changes: str) -> Make:
    def make(f: Forge) -> Attempt:
        preimage = f.manifest.preimage
        part = msgspec.structs.replace(getattr(preimage, field), **changes)
        preimage = msgspec.structs.replace(preimage, **{field: part})
        f.put(msgspec.structs.replace(f.manifest, preimage=preimage))
        return f.attempt()

    return make


_NONE, _ANY = (f'backends = {{onnxruntime = "{text}"}}' for text in ("<1", ">=1"))
_OLD_TENSORRT = another("fingerprint", backend="tensorrt", version="10.13.0.35")
add_all(
    "T12",
    version_that_the_policy_refuses=tried(policy=ruled(_NONE)),
    release_candidate_of_a_library=tried(
        another("fingerprint", version="9.0rc1"), policy=ruled(_ANY)
    ),
    version_of_five_thousand_digits=tried(
        another("fingerprint", version="9" * 5000), policy=ruled(_ANY)
    ),
    old_tensorrt=_OLD_TENSORRT,
    another_processor=another("target", arch="x86_64-other"),
    another_version_of_the_library=another("fingerprint", version="1.0.0"),
)

# T13 to T15, the bytes


def remade(data: Callable[[bytes], bytes] = bytes, **changes: object) -> Make:
    """Return tries whose engine was signed with other bytes, or another manifest."""

    def make(f: Forge) -> Attempt:
        manifest = msgspec.structs.replace(f.manifest, preimage=rekeyed(f), **changes)
        before = f.store.read(f.manifest.sha256)
        after = data(before)
        f.put(manifest, None if after == before else after)
        return f.attempt()

    return make


def program(machine: int) -> bytes:
    """Return the start of an ELF library for a processor (elf.h)."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00" + machine.to_bytes(2, "little")


def with_other_outputs(f: Forge) -> Attempt:
    named = (msgspec.structs.replace(each, name="z") for each in f.manifest.outputs)
    return remade(outputs=tuple(named))(f)


add("T13", "size_that_is_not_the_manifests", lambda f: remade(bytes=f.manifest.bytes + 1)(f))
add_all(
    "T14",
    program_for_this_processor_inside=remade(lambda d: d + program(62)),
    program_for_arm_inside=remade(lambda d: d + program(183)),
    bytes_that_are_no_engine=remade(lambda _: b"#!/bin/sh\n"),
)
add_all(
    "T15",
    bytes_that_only_begin_as_an_engine=remade(lambda d: d[:2] + b"\xff" * 64),
    outputs_that_the_manifest_does_not_have=with_other_outputs,
    outputs_that_the_manifest_does_not_have_without_a_first_load=tried(
        with_other_outputs, policy="canary = false\n" + POLICY
    ),
)

# T17, unsigned


def unsigned(make: Make, policy: str = LOCAL) -> Make:
    """Return tries with an engine that was built here and signed by nobody."""

    def made(f: Forge) -> Attempt:
        return replace(make(f), envelopes=[], policy=policy, made=[f.record])

    return made


@case("T17")
def another_manifest_of_bytes_that_were_built_here(f: Forge) -> Attempt:
    made = [f.record]
    other = remade(outputs=f.manifest.inputs)
    return replace(other(f), envelopes=[], policy=LOCAL, made=made)


add_all(
    "T17",
    no_statement_at_all=tried(envelopes=[]),
    built_here_but_the_policy_wants_signatures=unsigned(good, POLICY),
    unsigned_from_elsewhere_under_a_local_policy=tried(envelopes=[], policy=LOCAL),
)
add("T08", "unsigned_engine_of_another_model", unsigned(tried(model="other")))
add("T11", "plugin_in_an_unsigned_engine", unsigned(_PLUGIN))
add("T11", "lean_runtime_in_an_unsigned_one", unsigned(_LEAN))
add("T12", "unsigned_old_tensorrt", unsigned(_OLD_TENSORRT))
add(
    "T12",
    "unsigned_engine_of_a_version_that_the_policy_refuses",
    unsigned(good, ruled(_NONE, LOCAL)),
)
