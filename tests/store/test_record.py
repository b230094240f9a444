from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from trtbuild.engine import EngineKey, Fingerprint, ShapeRange, Target, Value
from trtbuild.errors import StoreError
from trtbuild.store.record import (
    PAYLOAD_TYPE,
    Blob,
    RecordError,
    decode_record,
    encode_record,
    make_record,
)

if TYPE_CHECKING:
    from trtbuild.store.record import Record

ROOT = Path(__file__).parents[2]
SHA256 = hashlib.sha256(b"plan").hexdigest()
TARGET = Target(backend="tensorrt-rtx", arch="sm_89", os="linux-x86_64")
ENGINE_KEY = EngineKey(
    network_sha256=SHA256,
    profiles=((ShapeRange(input="images", min=(1, 3), opt=(8, 3), max=(32, 3)),),),
    settings=(("optimization_level", 3), ("tf32", False), ("tiling", "none")),
    target=TARGET,
    fingerprint=Fingerprint(backend="tensorrt-rtx", version="1.7.1.116", build=SHA256),
)


class Measured(Value, frozen=True, kw_only=True):
    name: str
    seconds: float


class MeasuredNow(Measured, frozen=True):
    unit: str = "s"


def example() -> Record:
    return msgspec.structs.replace(
        make_record(
            "engine",
            ENGINE_KEY.digest,
            ENGINE_KEY,
            Measured(name="café", seconds=0.1),
            (Blob(name="engine", sha256=SHA256, bytes=4),),
        ),
        created="2026-01-31T12:00:00Z",
    )


def test_a_record_survives_its_file() -> None:
    record = decode_record(encode_record(example()))
    assert record == example()
    assert record.read(Measured) == Measured(name="café", seconds=0.1)
    assert record.read_preimage(EngineKey) == ENGINE_KEY
    assert record.blob("engine").sha256 == SHA256


def test_the_file_is_a_dsse_envelope_around_canonical_json() -> None:
    envelope = json.loads(encode_record(example()))
    payload = base64.b64decode(envelope["payload"], validate=True)
    assert envelope["payloadType"] == PAYLOAD_TYPE
    assert envelope["signatures"] == []
    encoded = b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE),
        PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )
    assert envelope["payloadSha256"] == hashlib.sha256(encoded).hexdigest()
    again = json.dumps(
        json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert again.encode() == payload


def test_every_bit_counts() -> None:
    data = encode_record(example())
    places = random.Random(0).sample(range(8 * len(data)), 1000)  # noqa: S311  no secret
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(RecordError):
            decode_record(bytes(flipped))


def test_every_truncation_and_extension_is_refused() -> None:
    data = encode_record(example())
    for length in range(len(data)):
        with pytest.raises(RecordError):
            decode_record(data[:length])
    for tail in (b" ", b"\n", b"\0", data):
        with pytest.raises(RecordError):
            decode_record(data + tail)
    with pytest.raises(RecordError):
        decode_record(bytes(len(data)))


def seal(payload: bytes, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """An envelope whose checksum is right, whatever is in it."""
    encoded = b"DSSEv1 %d %s %d %s" % (
        len(payload_type),
        payload_type.encode(),
        len(payload),
        payload,
    )
    fields = {
        "payload": base64.b64encode(payload).decode(),
        "payloadSha256": hashlib.sha256(encoded).hexdigest(),
        "payloadType": payload_type,
        "signatures": [],
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def test_a_correct_checksum_does_not_excuse_a_wrong_payload() -> None:
    payload = base64.b64decode(json.loads(encode_record(example()))["payload"])
    assert decode_record(seal(payload)) == example()
    fields = json.loads(payload)
    wrong = [
        payload.replace(b'"kind"', b'"kind":"engine","kind"'),  # a duplicate field
        payload.replace(b'{"name"', b'{"name":"x","name"'),  # a duplicate field in the value
        payload.replace(b",", b", "),
        *(canonical(fields | change) for change in WRONG_FIELDS),
        *(canonical({k: v for k, v in fields.items() if k != name}) for name in fields),
        b"\xff",
        b"[]",
    ]
    for each in wrong:
        assert each != payload
        with pytest.raises(RecordError):
            decode_record(seal(each))
    with pytest.raises(RecordError, match="payload type"):
        decode_record(seal(payload, "application/vnd.in-toto+json"))


WRONG_FIELDS: list[dict[str, object]] = [
    {"schema": 2},
    {"schema": "1"},
    {"kind": "../engine"},
    {"key": "../../etc/passwd"},
    {"key": SHA256.upper()},
    {"unknown": 1},
    {"blobs": [{"name": "../x", "sha256": SHA256, "bytes": 4}]},
    {"blobs": [{"name": "x", "sha256": "/etc/passwd", "bytes": 4}]},
]


def canonical(fields: object) -> bytes:
    return json.dumps(
        fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()


def test_a_missing_field_is_never_its_default() -> None:
    old = make_record("report", SHA256, {}, Measured(name="p50", seconds=1))
    assert old.read(Measured).seconds == 1
    with pytest.raises(StoreError, match="a field of MeasuredNow is missing"):
        old.read(MeasuredNow)
    with pytest.raises(StoreError, match="no Target"):
        old.read(Target)


def test_a_blob_that_a_record_lacks_is_an_error_with_the_names_it_has() -> None:
    with pytest.raises(StoreError, match=r"no blob 'plan' \(it has: engine\)"):
        example().blob("plan")


@pytest.mark.parametrize("name", ["", "a/b", "..\0", "x" * 129, "ü"])
def test_a_blob_name_that_could_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="blob name"):
        Blob(name=name, sha256=SHA256, bytes=1)


def test_keys_and_records_are_equal_in_every_process() -> None:
    program = (
        "from tests.store.test_record import *\n"
        "print(ENGINE_KEY.digest, hashlib.sha256(encode_record(example())).hexdigest())"
    )
    here = f"{ENGINE_KEY.digest} {hashlib.sha256(encode_record(example())).hexdigest()}\n"
    for seed in ("0", "1", "4294967295"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Asia/Tokyo"}
        answer = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout == here
