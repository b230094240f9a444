"""Mutated ONNX files through the real command: ``fuzz.py COUNT FOLDER [FIRST]``.

Each run is a fork of a process that has the libraries loaded, so that thousands can be tried;
how the command is asked (precision, backend, data) changes from run to run. Prints one JSON
document: exit codes, what was asked, and the seeds of what crashed, hung, or had a traceback.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

from tests.reliability.mutations import mutated, seeds
from trtbuild.backends.distributions import version
from trtbuild.cli import main as command
from trtbuild.pipeline.run import run as loaded

SECONDS = 300
"""A run that takes longer hangs. Most take below one; TensorRT-RTX needs 5 s for 2,000 nodes in
a row on an idle machine, and minutes for 4,000, so that rows end at 1,000."""
TYPED = {0, 2, 3, 4, 5, 6}
RTX = "tensorrt-rtx"
WAYS = {
    "fp32": (5, ["--precision", "fp32", "--backend", "onnxruntime"]),
    "fp16": (1, ["--precision", "fp16", "--backend", "onnxruntime"]),
    "int8": (2, ["--precision", "int8", "--backend", "onnxruntime", "--calibration", "{data}"]),
    "rtx fp32": (1, ["--precision", "fp32", "--backend", RTX, "--arch", "sm_89"]),
    "rtx int4": (1, ["--precision", "int4", "--backend", RTX, "--arch", "sm_89"]),
}


def one(arguments: list[str], store: Path, log: Path) -> None:
    """Run the command in this process, which ends with it."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.alarm(SECONDS)
    sys.argv = ["trtbuild", "engine", *arguments, "--store", str(store), "-q"]
    code: object = 1
    try:
        command()
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:  # noqa: BLE001  the child ends here, whatever it was
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def data(folder: Path) -> Path:
    """Return calibration data that fits the input ``x`` of some of the models."""
    path = folder / "data.npz"
    np.savez(path, x=np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    return path


def main() -> None:
    assert callable(loaded)  # so that each fork has it
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    models, samples = seeds(folder), data(folder)
    known = {name: way for name, way in WAYS.items() if RTX not in way[1] or version(RTX)}
    weights = [weight for weight, _ in known.values()]
    codes: collections.Counter[int] = collections.Counter()
    asked: collections.Counter[str] = collections.Counter()
    bad: dict[str, list[str]] = {"crashed": [], "hung": [], "untyped": []}
    for seed in range(first, first + count):
        draw = random.Random(seed)  # noqa: S311  no secret
        path = folder / "m.onnx"
        path.write_bytes(mutated(models, draw))
        (way,) = draw.choices(list(known), weights)
        arguments = [str(path), *(each.format(data=samples) for each in known[way][1])]
        log = folder / "log"
        child = os.fork()
        if not child:
            one(arguments, folder / "store", log)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        codes[code] += 1
        asked[way] += 1
        text = log.read_text(errors="replace")
        if code == -signal.SIGALRM:
            bad["hung"].append(f"{seed} {way}")
        elif code < 0:
            bad["crashed"].append(f"{seed} {way}: {signal.Signals(-code).name}")
        elif code not in TYPED or "Traceback" in text or (code and not text.strip()):
            bad["untyped"].append(f"{seed} {way} ({code}): {text[-300:]}")
    counted = {str(code): n for code, n in sorted(codes.items())}
    print(json.dumps({"codes": counted, "asked": asked, **bad}))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
