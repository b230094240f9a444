"""What a scraper reads: Prometheus' text format, one description per metric."""

from __future__ import annotations

import gc
import importlib
import re
import threading
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtbuild
from tests.pipeline import models
from trtbuild.backends.metrics import Metrics, render
from trtbuild.engine import ShapeRange, TensorSpec
from trtbuild.errors import UsageError
from trtbuild.runtime import metrics, warmup

SAMPLE = re.compile(r'^(\w+)\{((?:\w+="(?:[^"\\\n]|\\.)*",?)*)\} (\S+)$')


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Return samples by name and labels; fails where the format is not Prometheus'."""
    samples: dict[tuple[str, str], float] = {}
    described: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            described.append(line.split()[2])
        elif not line.startswith("# TYPE "):
            match = SAMPLE.match(line)
            assert match, line
            assert match[1].startswith(described[-1])
            assert (match[1], match[2]) not in samples, line
            samples[match[1], match[2]] = float(match[3])
    assert len(described) == len(set(described))
    return samples


def test_sessions_are_told_apart_and_every_metric_is_described_once() -> None:
    each = [Metrics({"engine": name}, {"contexts": lambda: 2}, {}) for name in ('a"\\\n', "b")]
    each[0].call(0.003, 10, 20)
    each[0].call(99.0)
    each[1].error(KeyError())
    found = parsed(render(each))
    odd, plain = 'engine="a\\"\\\\\\n"', 'engine="b"'
    assert found["trtbuild_bytes_to_device_total", odd] == 10
    assert found["trtbuild_latency_seconds_count", odd] == 2
    assert found["trtbuild_latency_seconds_bucket", odd + ',le="0.005"'] == 1
    assert found["trtbuild_latency_seconds_bucket", odd + ',le="0.0025"'] == 0
    assert found["trtbuild_latency_seconds_bucket", odd + ',le="+Inf"'] == 2
    assert found["trtbuild_errors_total", plain + ',error="KeyError"'] == 1
    assert found["trtbuild_contexts", plain] == 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a store, and the key of a float engine for this processor in it."""
    folder = tmp_path_factory.mktemp("metrics")
    recipe = models.with_quantization(
        models.recipe(folder, "onnxruntime"), precision="fp32", provider=None
    )
    return folder / "store", trtbuild.build(recipe, folder / "store").engines[0].key


def test_a_loaded_engine_is_warmed_counted_and_closed(built: tuple[Path, str]) -> None:
    store, key = built
    with trtbuild.load(key, store, contexts=1, warmup=2) as session:
        assert session.stats.calls == 0
        with pytest.raises(UsageError, match="expected one of context_waits, "):
            session.stats.value("calls")  # type: ignore[arg-type]  # what a user may write
        session.run({"x": models.images(1)})
        assert 'trtbuild_latency_seconds_count{backend="onnxruntime"' in metrics.render()
        with pytest.raises(UsageError, match="processor"):
            session.run_device({"x": 1})
    with pytest.raises(UsageError, match="closed"):
        session.run({"x": models.images(1)})
    with pytest.raises(UsageError, match="device is for engines on a GPU"):
        trtbuild.load(key, store, device=0)
    with pytest.raises(UsageError, match="weight_budget_mib is for engines on a GPU"):
        trtbuild.load(key, store, weight_budget_mib=1)
    with pytest.raises(UsageError, match="cuda_graphs is for engines on a GPU"):
        trtbuild.load(key, store, cuda_graphs=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contexts", "4"),
        ("contexts", True),
        ("contexts", 2.5),
        ("contexts", -1),
        ("warmup", None),
        ("warmup", 1.5),
        ("weight_budget_mib", float("nan")),
        ("device", -2),
        ("cuda_graphs", "no"),
    ],
)
def test_an_option_of_a_wrong_kind_is_named(
    name: str, value: object, built: tuple[Path, str]
) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(UsageError, match=f"{name} is {value!r}, expected"):
        trtbuild.load(built[1], built[0], **options)


def test_figures_of_one_engine_are_added_up_and_stay_when_its_sessions_go(
    built: tuple[Path, str],
) -> None:
    store, key = built
    calls = "trtbuild_latency_seconds_count"

    def counted(name: str) -> float:
        mark = f'engine="{engine}",signed="no"'
        samples = [v for (n, labels), v in parsed(metrics.render()).items()
                   if n == name and mark in labels]  # fmt: skip
        assert len(samples) == 1
        return samples[0]

    first, second = (trtbuild.load(key, store, contexts=2, warmup=0) for _ in range(2))
    engine = re.findall('engine="(.*?)"', first.metrics())[0]
    before = counted(calls)
    for session in (first, second, second):
        session.run({"x": models.images(1)})
    assert counted(calls) == before + 3
    assert counted("trtbuild_contexts_limit") == 4
    first.close()
    assert counted("trtbuild_contexts_limit") == 2
    del first, session
    gc.collect()
    assert counted(calls) == before + 3
    second.run({"x": models.images(1)})
    assert counted(calls) == before + 4
    del second
    gc.collect()
    assert counted(calls) == before + 4


def test_warm_up_uses_what_each_profile_is_tuned_for() -> None:
    specs = (
        TensorSpec(name="x", dtype="float16", shape=("n", 3)),
        TensorSpec(name="i", dtype="int64", shape=(2,)),
    )
    profiles = tuple(
        (ShapeRange(input="x", min=(1, 3), opt=(opt, 3), max=(9, 3)),) for opt in (2, 9)
    )
    found = warmup.samples(specs, profiles)
    assert [feeds["x"].shape for feeds in found] == [(2, 3), (9, 3)]
    assert all(feeds["i"].dtype == np.int64 for feeds in found)
    assert warmup.samples(specs, ()) == []


def test_the_server_of_the_readme_serves(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(from http.server.*?)```", text, re.DOTALL)
    assert '"0f3a9c"' in block
    module = tmp_path / "readme_server.py"
    module.write_text(block.replace("0f3a9c", built[1]), encoding="utf-8")
    monkeypatch.setenv("TRTBUILD_STORE", str(built[0]))
    monkeypatch.syspath_prepend(tmp_path)
    code = importlib.import_module("readme_server")
    with ThreadingHTTPServer(("127.0.0.1", 0), code.Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = HTTPConnection("127.0.0.1", server.server_port, timeout=60)

        def ask(method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
            client.request(method, path, body)
            answer = client.getresponse()
            return answer.status, answer.read()

        images = models.images(3)
        status, body = ask("POST", "/", images.tobytes())
        expected = code.SESSION.run({"x": images})["y"]
        assert status == 200
        np.testing.assert_allclose(np.frombuffer(body, np.float32), expected.ravel(), 1e-5)
        assert ask("POST", "/", models.images(33).tobytes())[0] == 400
        assert ask("POST", "/", b"odd")[0] == 400
        status, body = ask("GET", "/metrics")
        assert status == 200
        assert any("errors_total" in name for name, _ in parsed(body.decode()))
        assert ask("GET", "/")[0] == 404
        server.shutdown()
