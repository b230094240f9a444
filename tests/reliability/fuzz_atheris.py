"""One reader of a format under atheris: ``fuzz_atheris.py TARGET [libFuzzer's options]``.

Atheris is no requirement of anything: ``pip install --no-deps atheris`` where it has a wheel.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["trtbuild"]):
    from tests.reliability import fuzz_formats


def main() -> None:
    target = fuzz_formats.targets()[sys.argv.pop(1)]
    draw = random.Random(1)  # noqa: S311  no secret

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        """Mix libFuzzer's mutations with ours, which know JSON and TOML."""
        draw.seed(seed)
        if draw.random() < 0.5:
            return fuzz_formats.mutated(draw, (data, *target.seeds))[:limit]
        changed: bytes = atheris.Mutate(data, limit)
        return changed

    atheris.Setup(sys.argv, target.run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
