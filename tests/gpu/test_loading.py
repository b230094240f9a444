"""Engines that are loaded in other ways: by the lean runtime, with weights that stream."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.backends import graphs
from trtbuild.backends import fingerprint, trt_session
from trtbuild.backends.ort_session import open_graph
from trtbuild.backends.session import Attached, SessionOptions
from trtbuild.errors import BuildError, TrustError

if TYPE_CHECKING:
    from tests.gpu.conftest import Builds, Built
    from trtbuild.engine import Setting

pytestmark = pytest.mark.gpu

LEAN = """
import json, sys
import numpy as np
from trtbuild.backends import trt_device, trt_session
from trtbuild.backends.session import Plan, SessionOptions
found = trt_session.load_api("tensorrt", "tensorrt_lean")
plan = Plan(engine=open(sys.argv[1], "rb").read())
with trt_device.open_engine(plan, 0, found, SessionOptions(), {}) as session:
    (y,) = session.run({"x": np.load(sys.argv[2])}).values()
print(json.dumps(y.ravel().tolist()))
"""


def built_with(builds: Builds, **settings: Setting) -> Built:
    try:
        return builds.residual(**settings)
    except (BuildError, ValueError) as error:
        pytest.skip(f"{builds.target.backend}: {error}")


def check(session: Any, built: Built) -> None:  # noqa: ANN401  a session, or what stands for it
    x = graphs.images(3)
    (wanted,) = open_graph(built.graph.path, fused=False).run({"x": x}).values()
    (got,) = session.run({"x": x}).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2)


def test_a_version_compatible_engine_brings_code_only_where_that_is_allowed(
    builds: Builds,
) -> None:
    built = built_with(builds, version_compatible=True)
    with pytest.raises(TrustError):
        trt_session.open_session(built.plan, built.target)
    options = SessionOptions(allow_host_code=True)
    with trt_session.open_session(built.plan, built.target, options) as session:
        check(session, built)


def test_the_lean_runtime_runs_a_version_compatible_engine(builds: Builds) -> None:
    if builds.target.backend != "tensorrt" or not fingerprint.has_module("tensorrt_lean"):
        pytest.skip("tensorrt-lean is not installed")
    built = built_with(builds, version_compatible=True, exclude_lean_runtime=True)
    x = graphs.images(3)
    np.save(builds.folder / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", LEAN, builds.folder / "engine", builds.folder / "x.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wanted,) = open_graph(built.graph.path, fused=False).run({"x": x}).values()
    got = np.array(json.loads(done.stdout.splitlines()[-1]), np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("budget_mib", [0, 1])
def test_weights_that_stream_compute_the_same(builds: Builds, budget_mib: int) -> None:
    built = built_with(builds, weight_streaming=True)
    options = SessionOptions(weight_budget_mib=budget_mib)
    needs = Attached(streams_weights=True)
    with trt_session.open_session(built.plan, built.target, options, needs) as session:
        check(session, built)
