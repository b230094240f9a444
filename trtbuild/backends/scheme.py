"""How a backend wants a quantized graph to look; read by quantization, set by each backend."""

from __future__ import annotations

from typing import Literal

from trtbuild.engine import Value


class Scheme(Value, frozen=True, kw_only=True):
    """The Q/DQ form that a backend's kernels fuse.

    ``name`` goes into the network key through this value's digest. ``activation`` is ``int8``
    (symmetric, zero point 0) or ``uint8`` (asymmetric). ``requantize_outputs`` are the
    operators that need a Q/DQ pair behind them too, because their kernel exists only with
    8-bit output.
    ``bias`` is ``float`` (left alone) or ``int32`` (a DequantizeLinear of an INT32 constant).
    ``compute`` are the operators with weights that are quantized, ``carriers`` those that hand
    8-bit values through and are quantized when they stand between quantized operators.
    ``weight_bits`` is 8, or 7 where 8-bit products would saturate (x86 without VNNI).
    ``tails`` are the carriers that are quantized behind 8-bit nodes also where nothing after
    them wants 8 bits. ``float_stem`` bounds the convolutions on floating-point inputs that stay
    in floating point because the integer kernel is slower there: fewer than so many weights per
    output channel, and no more output channels than places in the window; 0 for none.
    """

    name: str
    activation: Literal["int8", "uint8"]
    requantize_outputs: tuple[str, ...]
    bias: Literal["float", "int32"]
    compute: tuple[str, ...]
    carriers: tuple[str, ...]
    weight_bits: Literal[7, 8] = 8
    tails: tuple[str, ...] = ()
    float_stem: int = 0
