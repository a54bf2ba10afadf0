from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.configs import row_tile
from helios_kernels.launch import launch
from helios_kernels.stream import layer_norm_tile, row_programs, rows_of_program


@triton.jit(do_not_specialize=["S", "split"])
def modulated_norm_kernel(
    x,  # [B, S, E]
    out,  # [B, S, E]
    scale,  # [B, 2, E] float32
    shift,  # [B, 2, E] float32
    S,
    split,
    eps,
    x_b,  # strides in elements; those along E are 1
    x_s,
    out_b,
    out_s,
    scale_b,
    scale_r,
    shift_b,
    shift_r,
    base: tl.constexpr,  # 1 for modulation, 0 for a plain weight
    E: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows, exists, noisy = rows_of_program(S, split, ROWS)
    batch = tl.program_id(1).to(tl.int64)
    side = noisy.to(tl.int64)
    rows = rows.to(tl.int64)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = exists[:, None] & (columns < E)

    tile = tl.load(x + batch * x_b + rows * x_s + columns, inside, other=0.0).to(tl.float32)
    factor = base + tl.load(scale + batch * scale_b + side * scale_r + columns, columns < E, other=0.0).to(tl.float32)
    offset = tl.load(shift + batch * shift_b + side * shift_r + columns, columns < E, other=0.0).to(tl.float32)
    tile = layer_norm_tile(tile, inside, E, eps) * factor + offset
    tl.store(out + batch * out_b + rows * out_s + columns, tile.to(out.dtype.element_ty), inside)


def run(x: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float, base: float) -> Tensor:
    """`norm(x) * (base + scale) + shift`; shapes as in `modulated_norm`."""
    B, S, E = x.shape
    assert x.stride(-1) == scale.stride(-1) == shift.stride(-1) == 1
    out = torch.empty((B, S, E), dtype=x.dtype, device=x.device)
    tile = row_tile("modulated_norm", E)
    launch(
        modulated_norm_kernel,
        (row_programs(S, split, tile.rows), B),
        x, out, scale, shift, S, split, eps,
        *x.stride()[:2], *out.stride()[:2], *row_strides(scale), *row_strides(shift),
        config=tile.config, base=base, E=E, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return out


def row_strides(rows_B2E: Tensor) -> tuple[int, int]:
    """(batch, row) strides; one batch item serves all."""
    return (rows_B2E.stride(0) if rows_B2E.shape[0] > 1 else 0, rows_B2E.stride(1))
