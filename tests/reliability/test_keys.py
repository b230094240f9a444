"""Keys: everything in one counts, nothing else does, and they never change by chance."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from trtbuild.canonical import digest, encode
from trtbuild.engine import EngineKey, Fingerprint, ShapeRange, Target

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden_keys.json")


def key_of(number: int, space: int = 1 << 30) -> EngineKey:
    """Return a key drawn from ``space`` values per field."""
    draw = random.Random(number)  # noqa: S311  no secret
    low = draw.randrange(1, 1 + min(space, 4))
    return EngineKey(
        network_sha256=digest("network", draw.randrange(space)),
        profiles=tuple(
            (ShapeRange(input="x", min=(low, 3), opt=(low + 1, 3), max=(low + 9, 3)),)
            for _ in range(draw.randrange(3))
        ),
        settings=(
            ("optimization_level", draw.randrange(min(space, 6))),
            ("tf32", draw.random() < 0.5),
            ("tiling", f"level-{draw.randrange(min(space, 3))}"),
        ),
        target=Target(
            backend="tensorrt", arch=f"sm_{draw.choice((80, 89))}", os="linux-x86_64"
        ),
        fingerprint=Fingerprint(backend="tensorrt", version="11.4.0.1", build="b" * 64),
    )


def leaves(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    empty = True
    for name, child in items:
        empty = False
        yield from leaves(child, (*place, name))
    if empty:
        yield place


def changed(plain: Any, place: tuple[Any, ...]) -> Any:  # noqa: ANN401  decoded JSON
    copy = json.loads(json.dumps(plain))
    holder = copy
    for name in place[:-1]:
        holder = holder[name]
    old = holder[place[-1]]
    holder[place[-1]] = (
        (not old)
        if isinstance(old, bool)
        else old + 1
        if isinstance(old, int)
        else [*old, []]
        if isinstance(old, list)
        else f"{old}x"
    )
    return copy


@pytest.mark.parametrize("count", [60, pytest.param(700, marks=pytest.mark.nightly)])
def test_every_field_of_a_key_counts(count: int) -> None:
    """K2: 700 keys have over 10,000 leaves."""
    seen = 0
    for number in range(count):
        key = key_of(number)
        plain = json.loads(encode(key))
        for place in leaves(plain):
            seen += 1
            assert digest("engine-key/v1", changed(plain, place)) != key.digest, place
    assert seen > 14 * count


def test_the_order_in_which_a_key_is_written_does_not_count() -> None:
    plain = json.loads(encode(key_of(1)))
    turned = dict(reversed(plain.items()))
    assert list(turned) != list(plain)
    assert digest("engine-key/v1", turned) == key_of(1).digest


PRINT = "from tests.reliability.test_keys import key_of; print(key_of({}).digest)"


@pytest.mark.parametrize("seeds", [4, pytest.param(64, marks=pytest.mark.nightly)])
def test_hash_seed_locale_and_folder_do_not_count(seeds: int, tmp_path: Path) -> None:
    """K3."""
    found = set()
    for seed in range(seeds):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONHASHSEED": str(seed),
            "LC_ALL": ("C", "C.UTF-8", "tr_TR.UTF-8")[seed % 3],
        }
        command = [sys.executable, "-c", PRINT.format(7)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.strip())
    assert found == {key_of(7).digest}


def test_the_keys_of_50_frozen_configurations_are_what_they_were() -> None:
    """K4: if this fails, every user loses the cache: bump KEY_SCHEMA, or undo the change."""
    assert [key_of(number).digest[:16] for number in range(50)] == json.loads(
        GOLDEN.read_text()
    )


@pytest.mark.parametrize("pairs", [500, pytest.param(5000, marks=pytest.mark.nightly)])
def test_two_keys_are_equal_exactly_if_what_they_are_of_is(pairs: int) -> None:
    """K6."""
    draw = random.Random(6)  # noqa: S311  no secret
    equal = 0
    for _ in range(pairs):
        first, second = (key_of(draw.randrange(40), space=2) for _ in range(2))
        same = msgspec.to_builtins(first) == msgspec.to_builtins(second)
        assert (first.digest == second.digest) == same
        equal += same
    assert equal > 3
