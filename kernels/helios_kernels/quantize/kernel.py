from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.dispatch import INTERPRETER, current_chip
from helios_kernels.launch import launch
from helios_kernels.quantize import E4M3, LARGEST, SMALLEST
from helios_kernels.tuning import row_tile


@triton.jit
def tanh_gelu(x):
    """Return x * (1 + tanh(u)) / 2, which is x * sigmoid(2 u), with u = sqrt(2 / pi) (x + 0.044715 x^3).

    The sigmoid is a reciprocal root squared: `tl.sigmoid` divides and repairs subnormal numbers, which takes a chip
    longer than the bytes do.
    """
    root = tl.rsqrt(1.0 + tl.exp2(x * (-2.302208198 - 0.1029432397 * x * x)))
    return x * (root * root)


@triton.jit
def round_to_3_bits(x):
    """Round to 3 bits of mantissa, ties to even, as the conversion to e4m3 does on a GPU.

    The interpreter's own conversion loses the carry where rounding up reaches the next power of two.
    """
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def round_tile(tile, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return (values of fp8's range [ROWS, BLOCK], scales [ROWS]) of a float32 tile; the values are still float32."""
    largest = tl.maximum(tl.max(tl.abs(tile), axis=1), SMALLEST)
    tile = tile * (LARGEST / largest)[:, None]
    tile = tl.clamp(tile, -LARGEST, LARGEST)  # the product may be rounded up past it
    if INTERPRETED:
        tile = round_to_3_bits(tile)
    return tile, tl.math.div_rn(largest, LARGEST)  # rounded as the twin's


@triton.jit(do_not_specialize=["S"])
def quantize_kernel(
    x,  # [S, E]
    out,  # [S, E] fp8, contiguous
    scales,  # [S] float32
    S,
    x_s,  # stride in elements; that along E is 1
    SMALLEST: tl.constexpr, LARGEST: tl.constexpr, GELU: tl.constexpr, INTERPRETED: tl.constexpr, E: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = rows < S
    columns = tl.arange(0, BLOCK)[None, :]
    inside = exists[:, None] & (columns < E)

    tile = tl.load(x + rows.to(tl.int64)[:, None] * x_s + columns, inside, other=0.0).to(tl.float32)
    if GELU:
        tile = tanh_gelu(tile)
    tile, scale = round_tile(tile, SMALLEST, LARGEST, INTERPRETED)
    tl.store(out + rows.to(tl.int64)[:, None] * E + columns, tile.to(out.dtype.element_ty), inside)
    tl.store(scales + rows, scale, exists)


def empty(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return room for the values and scales of rows."""
    scales = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
    return torch.empty(shape, dtype=E4M3, device=device), scales


def limits() -> dict[str, float | bool]:
    """Return the constants of `round_tile`."""
    return {"SMALLEST": SMALLEST, "LARGEST": LARGEST, "INTERPRETED": current_chip() == INTERPRETER}


def quantize(x: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    E = x.shape[-1]
    rows = x.reshape(-1, E)
    assert rows.stride(-1) == 1
    out, scales = empty(x.shape, x.device)
    tile = row_tile("quantize", E)
    launch(
        quantize_kernel,
        (triton.cdiv(len(rows), tile.rows),),
        rows, out, scales, len(rows), rows.stride(0),
        config=tile.config, **limits(), GELU=gelu, E=E, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return out, scales
