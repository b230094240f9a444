"""Mutated ONNX files through the real command: ``fuzz.py COUNT FOLDER``.

Each run is a fork of a process that has the libraries loaded, so that thousands can be tried.
Prints one JSON document: exit codes, and the seeds of what crashed, hung, or had a traceback.
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

from tests.backends import graphs
from trtbuild.cli import main as command
from trtbuild.pipeline.run import run as loaded

SECONDS = 60
TYPED = {0, 2, 3, 4, 5, 6}


def seeds(folder: Path) -> list[bytes]:
    """Return small models of several kinds."""
    draw = graphs.Drawing()
    weight = draw.constant("w", np.ones((4, 4), np.float32))
    product = draw.save(
        folder / "p.onnx", draw.node("MatMul", ["x", weight], "m"), ("batch", 4)
    )
    models = [product, graphs.chain(folder / "c.onnx", ["a", "b"])]
    models.append(graphs.residual(folder / "r.onnx", None))
    return [graph.path.read_bytes() for graph in models]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return ``data`` with a few bits, bytes, cuts, copies or long varints changed."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(len(out))
        what = draw.randrange(6)
        if what == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            out[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif what == 2:
            del out[at : at + draw.randrange(1, 32)]
        elif what == 3:
            out[at:at] = out[at : at + draw.randrange(1, 64)]
        elif what == 4:
            out[at:at] = b"\xff" * 9 + b"\x01"
        else:
            del out[max(at, 1) :]
        if not out:
            out = bytearray(b"\0")
    return bytes(out)


def one(path: Path, store: Path, log: Path) -> None:
    """Run the command in this process, which ends with it."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.alarm(SECONDS)
    sys.argv = ["trtbuild", "engine", str(path), "--precision", "fp32"]
    sys.argv += ["--backend", "onnxruntime", "--store", str(store), "-q"]
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


def main() -> None:
    assert callable(loaded)  # so that each fork has it
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    models = seeds(folder)
    codes: collections.Counter[int] = collections.Counter()
    bad: dict[str, list[str]] = {"crashed": [], "hung": [], "untyped": []}
    for seed in range(count):
        draw = random.Random(seed)  # noqa: S311  no secret
        path = folder / "m.onnx"
        path.write_bytes(mutated(draw.choice(models), draw))
        log = folder / "log"
        child = os.fork()
        if not child:
            one(path, folder / "store", log)
        status = os.waitpid(child, 0)[1]
        code = os.waitstatus_to_exitcode(status)
        codes[code] += 1
        text = log.read_text(errors="replace")
        if code == -signal.SIGALRM:
            bad["hung"].append(str(seed))
        elif code < 0:
            bad["crashed"].append(f"{seed}: {signal.Signals(-code).name}")
        elif code not in TYPED or "Traceback" in text:
            bad["untyped"].append(f"{seed}: {text[-300:]}")
    print(json.dumps({"codes": {str(code): n for code, n in sorted(codes.items())}, **bad}))  # noqa: T201  a script's answer


if __name__ == "__main__":
    main()
