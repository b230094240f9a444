"""Progress on a terminal: a bar for everything that counts."""

from __future__ import annotations

import sys

import pytest

from trtbuild.cli.output import speaker


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("calibrate: 64 of 512 samples", 3),
        ("push to s3://b: 8.4 MB of 62.9 MB", 3),
        ("push to s3://b: 900 B of 1.8 kB", 12),
        ("push to s3://b: 62.9 MB of 62.9 MB", 24),
        ("build: 3 of the layers", None),
    ],
)
def test_a_count_of_things_or_bytes_has_a_bar(
    text: str,
    done: int | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    speaker(quiet=False)(text)
    shown = capsys.readouterr().err
    assert ("#" in shown or "." * 24 in shown) == (done is not None)
    assert shown.count("#") == (done or 0)
