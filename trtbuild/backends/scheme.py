"""How a backend wants a quantized graph to look; read by quantization, set by each backend."""

from __future__ import annotations

from typing import Literal

from trtbuild.engine import Rest, Value


class Scheme(Value, frozen=True, kw_only=True):
    """The Q/DQ form that a backend's kernels fuse.

    ``name`` goes into the network key through this value's digest. ``activation`` is ``int8``
    (symmetric, zero point 0), ``uint8`` (asymmetric) or ``fp8`` (E4M3, weights too).
    ``requantize_outputs`` are the operators that need a Q/DQ pair behind them too, because
    their kernel exists only with 8-bit output.
    ``bias`` is ``float`` (left alone) or ``int32`` (a DequantizeLinear of an INT32 constant).
    ``compute`` are the operators with weights that are quantized, ``carriers`` those that hand
    8-bit values through and are quantized when they stand between quantized operators.
    ``weight_bits`` is 8, or 7 where 8-bit products would saturate (x86 without VNNI).
    ``tails`` are the carriers that are quantized behind 8-bit nodes also where nothing after
    them wants 8 bits. ``float_stem`` bounds the convolutions on floating-point inputs that stay
    in floating point because the integer kernel is slower there: fewer than so many weights per
    output channel, and no more output channels than places in the window; 0 for none.
    ``rest`` is the type around the quantized layers, and so that of every scale.
    """

    name: str
    activation: Literal["int8", "uint8", "fp8"]
    requantize_outputs: tuple[str, ...]
    bias: Literal["float", "int32"]
    compute: tuple[str, ...]
    carriers: tuple[str, ...]
    weight_bits: Literal[7, 8] = 8
    tails: tuple[str, ...] = ()
    float_stem: int = 0
    rest: Rest = "fp32"


class WeightScheme(Value, frozen=True, kw_only=True):
    """How a backend wants weights that are packed while activations stay as they are.

    Each weight of ``compute`` is cut along its inner axis into blocks of ``block`` elements
    that share a scale; 0 leaves the size to the recipe. ``format`` names their code. What a
    backend computes with them is ``rest``.
    """

    name: str
    format: Literal["int4", "nvfp4", "mxfp4"]
    compute: tuple[str, ...]
    block: int
    rest: Rest = "fp32"
