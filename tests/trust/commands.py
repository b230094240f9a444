"""Commands as a user types them, in the folders of the fixture ``place``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from tests.pipeline import models
from trtbuild.cli.application import app
from trtbuild.engine import Manifest
from trtbuild.errors import TrtbuildError
from trtbuild.store import Store

if TYPE_CHECKING:
    from trtbuild.engine import Manifest as ManifestType


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, TrtbuildError):
        assert done.exception.exit_code == code, done.exception
        return str(done.exception)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def manifest_of(root: Path) -> ManifestType:
    return next(Store.open(str(root)).records("engine")).read(Manifest)


def recipe(folder: Path) -> str:
    """Return the recipe that the store's engine was built by, as a file."""
    source = Path(json.loads(manifest_of(folder / "store").recipe)["folder"]) / "model.onnx"
    text = (
        f'[source]\nonnx = "{source}"\n[quantization]\nprecision = "fp32"\n'
        '[build]\ntargets = ["onnxruntime"]\n'
    )
    (folder / "classifier.toml").write_text(text)
    return str(folder / "classifier.toml")


def signed(folder: Path) -> str:
    """Let a builder sign the engine and a policy trust it; return the engine's digest."""
    run("keys", "generate", "nightly", "--use")
    run("keys", "generate", "release")
    report = json.loads(run("engine", recipe(folder), "--json", "-q"))
    run("keys", "trust", "nightly")
    run("keys", "trust", "release", "--role", "promoter")
    assert [each["name"] for each in report["engines"][0]["signatures"]] == ["nightly"]
    return str(report["engines"][0]["sha256"])


def demand_promoters(folder: Path) -> None:
    path = folder / "config" / "trtbuild" / "policy.toml"
    path.write_text(path.read_text().replace("promoters = 0", "promoters = 1"))


def works(session: Any) -> bool:  # noqa: ANN401  a session
    return bool(session.run({"x": models.images(2)})["y"].shape == (2, models.CLASSES))
