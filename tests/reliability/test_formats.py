"""S5: whatever bytes a reader is given, it refuses them with its own error or takes them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.fuzz_formats import fuzz, targets
from trtbuild.store.record import RecordError, decode_record, encode_record, make_record

HERE = Path(__file__).parent
NAMES = (
    *("envelope", "statement", "record", "payload", "manifest", "plan"),
    *("policy", "lock", "memory", "strict_json"),
)


def test_every_reader_is_fuzzed() -> None:
    assert tuple(targets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_survives_mutations(name: str) -> None:
    done, taken = fuzz(name, 5, count=1000)
    assert done == 1000
    assert name == "plan" or 0 < taken < done, "nothing, or all, was refused"


def test_a_record_that_is_nested_too_deeply_is_a_damaged_one() -> None:
    data = encode_record(make_record("ranges", "a" * 64, {}, {"x": [1]}))
    deep = b"[" * 100_000 + b"]" * 100_000
    for bad in (deep, data.replace(b'"signatures":[]', b'"signatures":' + deep)):
        with pytest.raises(RecordError):
            decode_record(bad)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_a_reader_survives_a_million_documents(name: str, tmp_path: Path) -> None:
    """Under atheris where it is installed, else by random mutations alone; 10^7 in all."""
    count = int(os.environ.get("TRTBUILD_FUZZ_FORMATS", "1000000"))
    if importlib.util.find_spec("atheris") is None:
        print(name, fuzz(name, 5, count=count))  # noqa: T201  the record of the run
        return
    command = [sys.executable, str(HERE / "fuzz_atheris.py"), name, f"-runs={count}", "-seed=5"]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "-max_len=20000"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Done (\d+) runs", done.stderr)
    assert found, done.stderr[-3000:]
    assert done.returncode == 0
    print(name, found[0])  # noqa: T201  the record of the run
    assert int(found[1]) >= count
