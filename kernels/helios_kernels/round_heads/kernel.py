"""Programs have blocks of rows of one head. The extremes of blocks are folded by PyTorch, so that sums have one order
whatever program ends first."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.dispatch import INTERPRETER, current_chip
from helios_kernels.launch import launch
from helios_kernels.quantize import SMALLEST
from helios_kernels.quantize.kernel import round_to_3_bits
from helios_kernels.round_heads import LARGEST, Over, empty
from helios_kernels.tuning import row_tile


@triton.jit
def _head_rows(x, S, x_b, x_s, x_n, D: tl.constexpr, ROWS: tl.constexpr):
    """Return (rows [ROWS, 1] of block `program_id(0)` of a head, which of them exist, their places in x [ROWS, D])."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    head = x + tl.program_id(2).to(tl.int64) * x_b + tl.program_id(1).to(tl.int64) * x_n
    return rows, rows < S, head + rows * x_s + tl.arange(0, D)[None, :]


@triton.jit(do_not_specialize=["S"])
def channel_extremes_kernel(
    x,  # [B, S, N, D]
    out,  # [3, B, N, blocks, D] float32: sums, smallest, largest
    S,
    x_b, x_s, x_n,  # strides in elements; that along D is 1
    D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    _, exists, place = _head_rows(x, S, x_b, x_s, x_n, D, ROWS)
    tile = tl.load(place, exists, other=0.0).to(tl.float32)
    blocks, heads = tl.num_programs(0), tl.num_programs(1) * tl.num_programs(2)
    head = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    at = out + (head * blocks + tl.program_id(0)) * D + tl.arange(0, D)
    step = heads * blocks * D
    tl.store(at, tl.sum(tile, axis=0))
    tl.store(at + step, tl.min(tl.where(exists, tile, float("inf")), axis=0))
    tl.store(at + 2 * step, tl.max(tl.where(exists, tile, float("-inf")), axis=0))


@triton.jit(do_not_specialize=["S"])
def round_heads_kernel(
    x,  # [B, S, N, D]
    means,  # [B, N, D] float32
    scales,  # float32: [B, N, D], or with OVER_ROWS [B, S, N], which is written
    out,  # [B, S, N, D] contiguous, or with COLUMNS [B, N, D, S]
    S,
    x_b, x_s, x_n,  # strides in elements; that along D is 1
    out_d,  # that of columns
    CENTRED: tl.constexpr, OVER_ROWS: tl.constexpr, COLUMNS: tl.constexpr, INTEGERS: tl.constexpr,
    SMALLEST: tl.constexpr, LARGEST: tl.constexpr, INTERPRETED: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows, exists, place = _head_rows(x, S, x_b, x_s, x_n, D, ROWS)
    channels = tl.arange(0, D)[None, :]
    N, batch = tl.num_programs(1), tl.program_id(2).to(tl.int64)
    head = batch * N + tl.program_id(1)
    tile = tl.load(place, exists, other=0.0).to(tl.float32)
    if CENTRED:
        tile = tile - tl.load(means + head * D + channels)
    row = (batch * S + rows) * N + tl.program_id(1)
    if OVER_ROWS:
        largest = tl.maximum(tl.max(tl.abs(tile), axis=1), SMALLEST)[:, None]
        scale = tl.math.div_rn(largest, tl.full((ROWS, 1), LARGEST, tl.float32))
        tl.store(scales + row, scale, exists)
    else:
        scale = tl.load(scales + head * D + channels)
    # Divided, as the twin does: a product with the reciprocal would now and then round to the neighbour.
    tile = tl.math.div_rn(tile, tl.broadcast_to(scale, (ROWS, D)))
    tile = tl.clamp(tile, -LARGEST, LARGEST)
    if INTEGERS:
        tile = (tile + 12582912.0) - 12582912.0  # 1.5 * 2^23, whose neighbours are 1 apart: nearest, ties to even
    elif INTERPRETED:
        tile = round_to_3_bits(tile)
    values = tile.to(out.dtype.element_ty)
    if COLUMNS:
        tl.store(out + (head * D + channels) * out_d + rows, values, exists)
    else:
        tl.store(out + row * D + channels, values, exists)


def channel_extremes(x_BSND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, S, N, D = x_BSND.shape
    assert x_BSND.stride(-1) == 1
    tile = row_tile("round_heads", D)
    blocks = triton.cdiv(S, tile.rows)
    out = torch.empty((3, B, N, blocks, D), dtype=torch.float32, device=x_BSND.device)
    launch(
        channel_extremes_kernel, (blocks, N, B), x_BSND, out, S, *x_BSND.stride()[:3],
        config=tile.config, D=D, ROWS=tile.rows,
    )  # fmt: skip
    sums, smallest, largest = out.unbind(0)
    return sums.sum(2), smallest.amin(2), largest.amax(2)


def round_heads(
    x_BSND: Tensor, dtype: torch.dtype, over: Over, *, centred: bool = False, columns: bool = False
) -> tuple[Tensor, Tensor]:
    B, S, N, D = x_BSND.shape
    assert x_BSND.stride(-1) == 1
    means = scales = x_BSND.new_empty((B, S, N, 1), dtype=torch.float32)
    if over != "row":
        sums, smallest, largest = channel_extremes(x_BSND)
        means = sums / S if centred else torch.zeros_like(sums)
        most = torch.maximum(largest - means, means - smallest)
        most = most.amax(-1, keepdim=True).expand_as(most) if over == "head" else most
        scales = most.clamp_min(SMALLEST).contiguous() / LARGEST[dtype]
    values = empty(x_BSND, dtype, columns=columns)
    tile = row_tile("round_heads", D)
    launch(
        round_heads_kernel,
        (triton.cdiv(S, tile.rows), N, B),
        x_BSND, means, scales, values, S, *x_BSND.stride()[:3], values.stride(2),
        config=tile.config, CENTRED=centred, OVER_ROWS=over == "row", COLUMNS=columns, INTEGERS=dtype == torch.int8,
        SMALLEST=SMALLEST, LARGEST=LARGEST[dtype], INTERPRETED=current_chip() == INTERPRETER, D=D, ROWS=tile.rows,
    )  # fmt: skip
    if over == "row":
        return values, scales
    scales = scales if over == "channel" else scales[..., :1]
    return values, scales[..., None] if columns else scales[:, None]
