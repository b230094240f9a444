"""The real command, run in this process: arguments in, exit code and both streams out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from trtbuild.cli import main

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:  # noqa: ANN401  decoded JSON
        return json.loads(self.out)

    @property
    def message(self) -> str:
        """The one message on stderr, progress left out."""
        lines = [line for line in self.err.splitlines() if not line.startswith("[")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path
) -> Done:
    """Run ``trtbuild`` with ``arguments``; what native code prints is captured too."""
    monkeypatch.setattr(sys, "argv", ["trtbuild", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    printed = capfd.readouterr()
    code = left.value.code
    return Done(code=code if isinstance(code, int) else 1, out=printed.out, err=printed.err)
