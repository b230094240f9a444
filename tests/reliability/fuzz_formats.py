"""Bytes that anybody could have written, given to every reader of a format (S5).

    python -m tests.reliability.fuzz_formats SECONDS [TARGET...]

Mutates good documents at random; ``fuzz_atheris.py`` does so guided by coverage. A reader may
only refuse: with its own error, which has a message. Prints how often each reader was called.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tests.store.engines import engine_key, put_engine
from tests.trust.forge import BUILDER, POLICY, Forge
from trtbuild.backends.trt_plan import read_header
from trtbuild.canonical import encode
from trtbuild.engine import Manifest
from trtbuild.errors import StoreError, TrustError
from trtbuild.store import Store, make_record
from trtbuild.store.record import PAYLOAD_TYPE, RecordError, decode_record, encode_record
from trtbuild.trust import dsse, strict_json
from trtbuild.trust.candidate import Pin
from trtbuild.trust.lockfile import Lock, read_lock, write_lock
from trtbuild.trust.memory import Loaded, Memory, read_memory, write_memory
from trtbuild.trust.policy import read_policy
from trtbuild.trust.statements import read_statement

if TYPE_CHECKING:
    from collections.abc import Callable

TOKENS = (
    *(b"[" * 3000, b'{"a":' * 3000, b"a=" + b"[" * 3000, b"9" * 5000, b"1e999", b"-0", b"NaN"),
    *(b'"\\ud800"', b"\\u0000", b"\xff\xfe", b"\x00", b'"', b"\n[[models]]\n", b"= 1979-05-27"),
    *(b"true", b"null", b"18446744073709551616", b'"schema":2', b",", b"}", b"'''", b"inf"),
)


@dataclass(frozen=True)
class Target:
    """A reader, what it refuses with, and documents that it takes."""

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def run(self, data: bytes) -> bool:
        """Tell whether the reader took ``data``; anything but its refusal gets through."""
        try:
            self.read(data)
        except self.refusals as error:
            if not str(error):
                raise ValueError("refused without a word") from error
            return False
        return True


def read_manifest(data: bytes) -> object:
    """Read JSON as what a record holds: whatever a record has was decoded before."""
    try:
        value: object = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(str(error)) from error
    return make_record("engine", "a" * 64, {}, value).read(Manifest)


def read_payload(data: bytes) -> object:
    """Read a record whose envelope is right."""
    kind = PAYLOAD_TYPE.encode()
    signed = b"DSSEv1 %d %b %d " % (len(kind), kind, len(data)) + data
    return decode_record(
        encode(
            {
                "payload": base64.b64encode(data).decode(),
                "payloadSha256": hashlib.sha256(signed).hexdigest(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [],
            }
        )
    )


@functools.cache
def targets() -> dict[str, Target]:
    """Return all readers by name."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(f"{folder}/store")
        record = put_engine(store, engine_key("sm_89", 3), b"plan")
        docs = Forge(store, record).docs().values()
        statements = tuple(
            encode(each).replace(b':""', b':"%s"' % (b"a" * 64)) for each in docs
        )
    file = encode_record(record)
    envelope = dsse.seal(statements[0], [BUILDER])
    pin = Pin(model="net", target="tensorrt:sm_89", engine="a" * 64, seq=3)
    lock = write_lock(Lock().with_pin(pin)).encode()
    loaded = Loaded(seq=3, keys=("a" * 64,))
    memory = write_memory(Memory(releases={"net/tensorrt:sm_89/int8": loaded}))
    policy = POLICY.encode()
    strict = (strict_json.StrictError,)
    return {
        "envelope": Target(dsse.decode_envelope, (TrustError,), (envelope,)),
        "statement": Target(read_statement, (TrustError,), statements),
        "record": Target(decode_record, (RecordError, StoreError), (file,)),
        "payload": Target(
            read_payload,
            (RecordError, StoreError),
            (base64.b64decode(msgspec.json.decode(file)["payload"]),),
        ),
        "manifest": Target(read_manifest, (RecordError, StoreError), (bytes(record.value),)),
        "plan": Target(read_header, (), (b"vtrt" + bytes(96), b"ptrt" + bytes(96))),
        "policy": Target(lambda data: read_policy(data, "p"), (TrustError,), (policy,)),
        "lock": Target(lambda data: read_lock(data, "l"), (TrustError,), (lock,)),
        "memory": Target(lambda data: read_memory(data, "m"), (TrustError,), (memory,)),
        "strict_json": Target(strict_json.parse, strict, (*statements, memory)),
    }


def mutated(draw: random.Random, seeds: tuple[bytes, ...]) -> bytes:
    """Return a document with one to four changes."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((0, 1, 1, 4, 30)))
        part = draw.choice(
            (
                b"",
                bytes([draw.randrange(256)]),
                draw.choice(TOKENS),
                bytes(data[at:end]) * 2,
                draw.choice(seeds)[at : at + 40],
            )
        )
        data[at:end] = part
    return bytes(data)


def fuzz(name: str, seed: int, *, count: int = 0, seconds: float = 0.0) -> tuple[int, int]:
    """Run one reader so often, or so long; return how often, and how often it took it."""
    target, draw = targets()[name], random.Random(seed)  # noqa: S311  no secret
    for data in target.seeds:
        if not target.run(data):
            raise ValueError(f"{name}: refused its own document {data[:200]!r}")
    end = time.monotonic() + seconds
    done = taken = 0
    while done < count or time.monotonic() < end:
        data = mutated(draw, target.seeds)
        try:
            taken += target.run(data)
        except Exception as error:
            message = f"{name}, seed {seed}, execution {done}: {data[:2000]!r}"
            raise AssertionError(message) from error
        done += 1
    return done, taken


def main() -> None:
    seconds, *names = sys.argv[1:]
    names = names or list(targets())
    for name in names:
        done, taken = fuzz(name, time.time_ns(), seconds=float(seconds) / len(names))
        print(f"{name}: {done} executions, {taken} taken", flush=True)  # noqa: T201  the record of the run


if __name__ == "__main__":
    main()
