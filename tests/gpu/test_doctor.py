"""The doctor on a machine with a GPU."""

from __future__ import annotations

import re

import pytest

from trtbuild.cli.installation import gpu_checks

pytestmark = pytest.mark.gpu


def test_the_driver_and_every_gpu_are_named() -> None:
    checks = gpu_checks()
    driver = next(check for check in checks if check.name == "nvidia driver")
    assert driver.state == "ok"
    assert driver.version
    assert any(re.fullmatch(r"sm_\d{2,3}", check.version) for check in checks)
