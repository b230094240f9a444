"""Groups of activations: told apart by what makes their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.quantization import networks
from tests.quantization.test_migration import transformer
from trtbuild.quantization.groups import groups

if TYPE_CHECKING:
    from pathlib import Path


def test_tensors_are_grouped_by_what_makes_their_values(tmp_path: Path) -> None:
    graph = networks.network(tmp_path)
    names = ("x", "stem_r", "pool", "wise", "six", "sum", "joined", "flat", "nothing")
    assert groups(graph, names) == {
        "inputs": ("x",),
        "rectified": ("stem_r", "pool", "six"),
        "products": ("wise",),
        "residual": ("sum",),
        "joined": ("joined",),
        "others": ("flat", "nothing"),
    }


def test_biases_and_written_out_norms_are_seen_through(tmp_path: Path) -> None:
    graph = transformer(tmp_path)
    found = groups(graph, ("norm", "kb", "curved", "inner", "shifted", "gated"))
    assert found == {
        "normalized": ("norm", "shifted"),
        "products": ("kb",),
        "bounded": ("curved",),
        "residual": ("inner",),
        "gated": ("gated",),
    }
