"""Settings are read back after they were set; what a version lacks is left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from trtbuild.backends import trt_settings
from trtbuild.backends.trt_config import Settings
from trtbuild.backends.trt_log import Messages, Refusal
from trtbuild.errors import BuildError

if TYPE_CHECKING:
    from pathlib import Path

SHARING = "PROFILE_SHARING_0806"


class Config:
    """A configuration that takes what it is told, preview features only if ``obeys``."""

    def __init__(self, *, shares: bool, obeys: bool = True) -> None:
        self.shares, self.obeys = shares, obeys
        self.asked: list[str] = []
        self.limit = 0
        self.builder_optimization_level = 0
        self.profiling_verbosity = ""

    def set_memory_pool_limit(self, _pool: str, limit: int) -> None:
        self.limit = limit

    def get_memory_pool_limit(self, _pool: str) -> int:
        return self.limit

    def set_preview_feature(self, feature: str, on: bool) -> None:  # noqa: FBT001  as TensorRT's
        self.asked.append(feature)
        self.shares = on and self.obeys

    def get_preview_feature(self, _feature: str) -> bool:
        return self.shares


def applied(config: Config, folder: Path, members: dict[str, str]) -> None:
    def enum(found: dict[str, str]) -> Any:  # noqa: ANN401  an enumeration of the bindings
        return SimpleNamespace(__members__=found, **found)

    trt = SimpleNamespace(
        BuilderFlag=enum({}),
        PreviewFeature=enum(members),
        MemoryPoolType=enum({"WORKSPACE": "workspace"}),
        ProfilingVerbosity=enum({"DETAILED": "detailed"}),
    )
    refusal = Refusal(folder / "m.onnx", "TensorRT 8.6.1 for sm_80", Messages())
    Settings(trt, config, refusal).apply(trt_settings.OPTIONS)


@pytest.mark.parametrize(
    ("config", "members", "asked"),
    [
        (Config(shares=False), {SHARING: SHARING}, [SHARING]),  # 8.6
        (Config(shares=True), {SHARING: SHARING}, []),  # 10
        (Config(shares=False), {}, []),  # 11
    ],
)
def test_execution_contexts_share_profiles_where_that_is_a_choice(
    config: Config, members: dict[str, str], asked: list[str], tmp_path: Path
) -> None:
    applied(config, tmp_path, members)
    assert config.asked == asked


def test_sharing_that_has_no_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="did not take profile sharing = True"):
        applied(Config(shares=False, obeys=False), tmp_path, {SHARING: SHARING})
