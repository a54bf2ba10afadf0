"""Which weights of the transformer are kept as fp8 under `--quant fp8`, and how one becomes it.

A weight [out, in] is stored as e4m3 values [out, in] under its own name and float32 scales [out] under
that name with SCALE_SUFFIX; row by row, values times scale are the weight.

That is self-attention and the feed-forward, 84 % of the 14B model's products. Kept as they were: norms, biases, tables,
patch and condition embedders and the output projection, together a thousandth of the work; and cross-attention. Its
result is added to the stream without a gate, and on random weights it alone brings in two thirds of the error that fp8
of everything would.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from helios_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ffn.net.0.proj", "ffn.net.2")

_FP8_WEIGHT = re.compile(rf"blocks\.\d+\.({'|'.join(map(re.escape, LAYERS))})\.weight")

SCALE_SUFFIX = "_scale"

Quant = Literal["none", "fp8"]

FP8_CAPABILITY = (8, 9)
"""CUDA capability of the first chips with fp8 products: Ada."""


def dtype_with(quant: Quant, dtype: str) -> str:
    """What --dtype `dtype` means beside --quant. InputError for a pair that is not computed."""
    if quant == "none":
        return dtype
    if dtype not in ("auto", "bfloat16"):
        raise InputError(f"--quant {quant} computes the rest in bfloat16, not {dtype}", hint="leave out --dtype")
    return "bfloat16"


def is_fp8(name: str) -> bool:
    """Whether the transformer's parameter `name` is a weight that fp8 is for."""
    return _FP8_WEIGHT.fullmatch(name) is not None


def is_scale(name: str) -> bool:
    return name.endswith(f".weight{SCALE_SUFFIX}")


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(e4m3 values [out, in], float32 scales [out]) nearest to `weight`; the largest of a row becomes 448."""
    from helios_kernels.quantize.reference import quantize

    values, scales = quantize(weight)
    return values, scales[:, 0].contiguous()
