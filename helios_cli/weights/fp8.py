"""The weights of the transformer that are fp8 under `--quant fp8`, and their rounding.

A weight [out, in] becomes e4m3 values [out, in] under its own name and float32 scales [out] under that name with
SCALE_SUFFIX; the values of a row times its scale are the weight.

Self-attention and the feed-forward are rounded, 84 % of the 14B model's products. Norms, biases, tables, embedders and
the output projection are not, which are 0.1 % of the work. Nor is cross-attention: its result is added to the stream
without a gate, and on random weights it alone makes two thirds of the error of rounding everything.
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

Quant = Literal["none", "fp8", "fp8+attention"]
"""--quant: what is computed in 8 bits, nothing, products, or products and self-attention."""

FP8_CAPABILITY = (8, 9)
"""The CUDA capability of the first chips with fp8 products (Ada)."""

EXACT, FAST = "float32", "fast"
"""The sums of a product: in float32, or in the fewer bits that Hopper's tensor cores take for speed."""


def dtype_with(quant: Quant, dtype: str) -> str:
    """Return the dtype for --quant and --dtype. Raises InputError for a pair that is not supported."""
    if quant == "none":
        return dtype
    if dtype not in ("auto", "bfloat16"):
        raise InputError(f"--quant {quant} computes the rest in bfloat16, not {dtype}", hint="leave out --dtype")
    return "bfloat16"


def is_fp8(name: str) -> bool:
    """Return whether the transformer's parameter `name` is a weight that --quant fp8 rounds."""
    return _FP8_WEIGHT.fullmatch(name) is not None


def is_scale(name: str) -> bool:
    return name.endswith(f".weight{SCALE_SUFFIX}")


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to (e4m3 values [out, in], float32 scales [out]); the largest value of a row becomes 448."""
    from helios_kernels import quantize

    values, scales = quantize.twin(weight)
    return values, scales[:, 0].contiguous()
