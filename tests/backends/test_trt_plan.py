"""What the header of an engine tells is compared where the header is one that we know."""

from __future__ import annotations

import struct

import pytest

from tests.backends import building
from trtbuild.backends.trt_plan import problem
from trtbuild.engine import Target

PROPER = Target(backend="tensorrt", arch="sm_90", os="linux_x86_64")
ADA = building.rtx("sm_89")


def plan(
    magic: bytes = b"ftrt", size: int = 400, version: tuple[int, ...] = (10, 13, 3, 9)
) -> bytes:
    """Return 400 bytes with the header of an engine; its architecture is sm_89 for RTX."""
    head = struct.pack("<4sIIIQ4B4sQ", magic, 0, 0xF0, 0, size, *version, magic, 1 << 3)
    return head + bytes(400 - len(head))


@pytest.mark.parametrize("version", ["10.13.3.9", "10.13.3", "10.13.3.post1", "10.13.3.12", ""])
def test_an_engine_of_its_builders_version_is_taken(version: str) -> None:
    assert problem(plan(), PROPER, version) == ""
    assert problem(plan(b"vtrt"), ADA, version) == ""


@pytest.mark.parametrize("version", ["10.13.2.9", "10.12.3", "11.13.3.9", "8.6.1"])
def test_an_engine_of_another_version_is_refused(version: str) -> None:
    said = f"its header says version 10.13.3.9, its manifest {version}"
    assert problem(plan(), PROPER, version) == said
    assert problem(plan(b"vtrt"), ADA, version) == said


@pytest.mark.parametrize("size", [399, 401, 0, 2**64 - 1])
def test_an_engine_of_another_length_is_refused(size: int) -> None:
    said = f"its header says {size} bytes, it has 400"
    assert problem(plan(size=size), PROPER, "10.13.3.9") == said
    assert problem(plan(b"vtrt", size=size), ADA, "10.13.3.9") == said


def test_an_engine_of_the_other_library_is_refused() -> None:
    assert "TensorRT-RTX" in problem(plan(b"vtrt"), PROPER, "10.13.3.9")
    assert "does not start" in problem(plan(), ADA, "10.13.3.9")


def test_a_header_that_nobody_knows_is_left_to_the_runtime() -> None:
    """Metadata of others before it, and versions that do not tell theirs."""
    assert problem(b"\x10\0\0\0{}" + plan(), PROPER, "10.13.3.9") == ""
    assert problem(plan(size=1, version=(0, 0, 0, 0)), PROPER, "8.5.1") == ""
    assert problem(b"ftrt", PROPER, "10.13.3.9") == "it has 4 bytes"
    assert problem(plan(size=1), PROPER) == "", "a build, or an engine with a runtime inside"
