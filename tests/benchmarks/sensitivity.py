"""How true estimated sensitivities are: against every node quantized alone, one at a time.

    .venv/bin/python -m tests.benchmarks.sensitivity tensorrt-rtx engines/digits-int8.toml ...

Prints, per recipe, how many groups the estimate measured, Spearman's rank correlation of noise
at the model's outputs with the exhaustive measurement (also of noise at the nodes' own outputs,
which is what a tool sees that never runs the rest of the model), how many of the five worst
nodes agree, and whether noise adds up. ``keep_float`` of the recipes is left out. What the
store (``TRTBUILD_STORE``) knows is not measured again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from trtbuild.pipeline.context import working
from trtbuild.pipeline.precision import scheme_of
from trtbuild.pipeline.quantizing import subject_of
from trtbuild.pipeline.sensitivity import sensitivity
from trtbuild.pipeline.simplify import optimized
from trtbuild.pipeline.source import export_source, open_data
from trtbuild.recipe import load_recipe
from trtbuild.store import Store

_WORST = 5


def _spearman(first: list[float], second: list[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _run(name: str, path: Path) -> None:
    recipe = load_recipe(path)
    quantization = msgspec.structs.replace(recipe.quantization, keep_float=(), method="minmax")
    recipe = msgspec.structs.replace(recipe, quantization=quantization)
    with working(recipe, Store.open(""), lambda text: print(text, file=sys.stderr)) as context:
        data = open_data(context)
        if data is None:
            raise SystemExit(f"{path}: no data")
        graph = optimized(context, export_source(context, data).graph)
        subject = subject_of(context, graph, data, scheme_of(recipe, name))
        costs = sensitivity(subject)
        true = {
            node: subject.trials.effects({node: subject.only(frozenset({node}))})[node]
            for node in subject.plan.compute
        }
    nodes = list(true)
    estimated = [costs.costs[node].worst_noise for node in nodes]
    measured = [true[node].worst_noise for node in nodes]
    worst = [
        {nodes[i] for i in np.argsort(values)[-_WORST:]} for values in (estimated, measured)
    ]
    local = [costs.local[node] for node in nodes]
    print(
        f"| {recipe.name} | {len(nodes)} | {costs.runs} | {_spearman(estimated, measured):.2f} "
        f"| {_spearman(local, measured):.2f} | {len(worst[0] & worst[1])} of {_WORST} "
        f"| {nodes[int(np.argmax(estimated))] == nodes[int(np.argmax(measured))]} "
        f"| {sum(measured):.4g} | {costs.whole.worst_noise:.4g} |"
    )


def main() -> None:
    """Compare for the backend and the recipes that the command line names."""
    name, *recipes = sys.argv[1:]
    print(
        "| recipe | nodes | groups measured | rank correlation | of local noise alone "
        "| worst five | the worst agrees | sum of nodes | all together |"
    )
    print("| --- |" + " --- |" * 8)
    for recipe in recipes:
        _run(name, Path(recipe))


if __name__ == "__main__":
    main()
