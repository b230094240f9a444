"""What can be told of an engine's bytes without a runtime: its start, and hidden programs."""

from __future__ import annotations

from trtbuild.trust.refusal import refusal

_MAGIC = b"\x7fELF"
_HOST_MACHINES = {62: "x86-64", 183: "AArch64"}
"""ELF's e_machine of processors (elf.h); GPU code has 190."""

_HEADER_BYTES = 20


def host_programs(data: bytes) -> tuple[str, ...]:
    """Return the processors that programs or libraries inside ``data`` are for.

    Exact on plans: TensorRT-RTX engines have none, a lean runtime is one.
    """
    found = []
    place = data.find(_MAGIC)
    while place >= 0:
        header = data[place : place + _HEADER_BYTES]
        if len(header) == _HEADER_BYTES and header[4] in (1, 2) and header[5] in (1, 2):
            machine = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
            if header[6] == 1 and machine in _HOST_MACHINES:
                found.append(_HOST_MACHINES[machine])
        place = data.find(_MAGIC, place + 1)
    return tuple(found)


def check_content(
    data: bytes, label: str, header_problem: str, *, host_code: bool = False
) -> None:
    """Refuse bytes that do not begin as they should, or, unless ``host_code``, hide a program.

    ``header_problem`` is what the backend says of their start, empty where it is as it should.

    Raises:
        TrustError: T14.
    """
    programs = () if host_code else host_programs(data)
    problem = header_problem
    if programs:
        problem = f"its bytes contain a program for {programs[0]} processors"
    if problem:
        raise refusal(
            "T14",
            f"{label}: {problem}",
            "an engine of its backend without host code",
            "Do not load it; find out who built it",
        )
