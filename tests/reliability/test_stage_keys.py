"""Engine keys as the real stages make them: what is in them, and what must not be."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline import models
from trtbuild.backends import gpu, tensorrt, tensorrt_rtx, trt_settings
from trtbuild.canonical import digest
from trtbuild.engine import KEY_SCHEMA, ShapeRange
from trtbuild.graph.model import read_graph
from trtbuild.pipeline.engines import build_engine
from trtbuild.pipeline.targets import plan_targets
from trtbuild.recipe import Gates, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from trtbuild.recipe import Recipe

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden_settings.json")
TARGET = "tensorrt-rtx:sm_89"
PROFILE = (ShapeRange(input="x", min=(1, 3, 32, 32), opt=(8, 3, 32, 32), max=(16, 3, 32, 32)),)


class AskedError(Exception):
    """The store was asked for a key."""


def asked(_name: str, _kind: str, key: str, *_: object) -> NoReturn:
    raise AskedError(key)


def key_of(recipe: Recipe, profile: tuple[ShapeRange, ...] = PROFILE) -> str:
    """Return the key that the stage of building asks the store for."""
    (planned,) = plan_targets(recipe, strict=True).planned
    graph = read_graph(recipe.folder / str(recipe.source.onnx))
    context: Any = SimpleNamespace(stages=[], stage=asked, recipe=recipe)
    with pytest.raises(AskedError) as found:
        build_engine(context, planned, graph, profile, "fp32")
    return str(found.value)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Recipe]:
    """Return one recipe in two folders with other names and times."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    recipe = models.recipe(first, TARGET)
    models.recipe(second, TARGET)
    (second / "model.onnx").write_bytes((first / "model.onnx").read_bytes())
    return recipe, msgspec.structs.replace(recipe, folder=second, name="other")


VARIABLES = (
    *("HOME", "USER", "LOGNAME", "HOSTNAME", "LANG", "TZ", "TMPDIR", "CI", "GITHUB_SHA"),
    *("TRTBUILD_STORE", "TRTBUILD_SANDBOX", "TRTBUILD_OFFLINE", "TRTBUILD_POLICY"),
    *("TRTBUILD_CACHE_HIGH", "TRTBUILD_CACHE_LOW", "TRTBUILD_BUILDER_ID", "TRTBUILD_STATE"),
    *("TRTBUILD_SIGNING_KEY", "TRTBUILD_KEY_PASSPHRASE", "TRTBUILD_SOMETHING"),
)
LEVELS = (logging.DEBUG, logging.ERROR)


def surround(patch: pytest.MonkeyPatch, recipe: Recipe, draw: random.Random) -> Recipe:
    """Change facts that must not count, each or not; return the recipe as it is then."""
    for name in VARIABLES:
        if draw.random() < 0.3:
            patch.setenv(name, str(draw.getrandbits(32)))
    host = f"host{draw.getrandbits(16)}"
    now = draw.uniform(1e9, 2e9)
    facts: list[Callable[[], object]] = [
        lambda: patch.chdir(draw.choice(("/", "/tmp"))),  # noqa: S108  a folder that is there
        lambda: patch.setattr(socket, "gethostname", lambda: host),
        lambda: patch.setattr(platform, "node", lambda: host),
        lambda: patch.setattr(time, "time", lambda: now),
        lambda: patch.setattr(gpu, "driver_cuda", lambda: (draw.randrange(11, 14), 0)),
        lambda: patch.setattr(logging.getLogger(), "level", draw.choice(LEVELS)),
        lambda: os.utime(recipe.folder / "model.onnx", (now, now)),
    ]
    for fact in facts:
        if draw.random() < 0.4:
            fact()
    gates = Gates(max_drop=draw.choice((None, 0.01, 0.5)), min_speedup=None)
    return msgspec.structs.replace(recipe, gates=gates)


def other_setting(name: str, value: object) -> object:
    """Return another value that the setting may have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    known = [each for each in trt_settings.CHOICES.get(name, ()) if each != value]
    return known[0] if known else {"timing_cache": "off"}.get(name, f"{value}x")


NEEDS: dict[str, dict[str, object]] = {
    "strip_plan": {"refit": True},
    "exclude_lean_runtime": {"version_compatible": True},
}
"""What a setting cannot be without; all of them differ from each other all the same."""


def with_setting(recipe: Recipe, name: str) -> Recipe:
    value = other_setting(name, tensorrt_rtx.OPTIONS[name])
    build = msgspec.structs.replace(recipe.build, options={**NEEDS.get(name, {}), name: value})
    return msgspec.structs.replace(recipe, build=build)


@pytest.mark.rtx
@pytest.mark.parametrize("examples", [150, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_what_surrounds_a_build_does_not_count(
    examples: int, recipes: tuple[Recipe, Recipe]
) -> None:
    """K2: host, user, folder, time of change, clock, driver, log level, variables, gates."""
    expected = key_of(recipes[0])

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.integers(0, 1 << 48), st.booleans())
    def holds(seed: int, moved: bool) -> None:  # noqa: FBT001  hypothesis draws it
        with pytest.MonkeyPatch.context() as patch:
            draw = random.Random(seed)  # noqa: S311  no secret
            assert key_of(surround(patch, recipes[moved], draw)) == expected

    holds()


@pytest.mark.rtx
def test_every_setting_profile_weight_and_library_counts(
    recipes: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K2 and K6: each change alone gives a key of its own."""
    recipe = recipes[0]
    keys = {"as it is": key_of(recipe)}
    for name in tensorrt_rtx.OPTIONS:
        if name not in {"plugins", "refit_individual"}:
            keys[name] = key_of(with_setting(recipe, name))
    keys["no profile"] = key_of(recipe, ())
    for field in ("min", "opt", "max"):
        batch = {"min": 2, "opt": 9, "max": 17}[field]
        other = msgspec.structs.replace(PROFILE[0], **{field: (batch, 3, 32, 32)})
        keys[field] = key_of(recipe, (other,))
    keys["architecture"] = key_of(models.with_targets(recipe, "tensorrt-rtx:sm_86"))
    data = bytearray((recipe.folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1  # in the weights, which are most of it
    (tmp_path / "model.onnx").write_bytes(data)
    keys["one bit of a weight"] = key_of(msgspec.structs.replace(recipe, folder=tmp_path))
    installed = tensorrt_rtx.fingerprint
    for field in ("version", "build"):
        monkeypatch.setattr(
            tensorrt_rtx,
            "fingerprint",
            lambda target, field=field: msgspec.structs.replace(
                installed(target), **{field: "other"}
            ),
        )
        keys[f"library {field}"] = key_of(recipe)
    assert len(set(keys.values())) == len(keys) > 20


@pytest.mark.rtx
def test_the_settings_of_the_recipes_are_what_they_were() -> None:
    """K4: if a default changes, the engines of everybody are built again: bump KEY_SCHEMA."""
    found = {
        f"{module.NAME} {KEY_SCHEMA}": digest("settings", dict(module.OPTIONS))[:16]
        for module in (tensorrt, tensorrt_rtx)
    }
    for path in sorted((ROOT / "engines").glob("*.toml")):
        for planned in plan_targets(load_recipe(path), strict=False).planned:
            if planned.target.backend == "tensorrt":
                continue  # only some machines have it; its defaults are above
            name = f"{path.stem} {planned.target.backend} {KEY_SCHEMA}"
            found[name] = digest("settings", planned.settings)[:16]
    assert found == json.loads(GOLDEN.read_text())
