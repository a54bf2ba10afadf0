from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.launch import launch
from helios_kernels.tuning import row_tile


@triton.jit(do_not_specialize=["S"])
def qk_norm_rope_kernel(
    x,  # [B, S, W, E], changed in place
    weight,  # [W, E]
    rope,  # [S, D/2, 2] float32, contiguous
    S, eps,
    x_b, x_s, x_w, weight_w,  # strides in elements; those along E are 1
    HAS_ROPE: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    piece, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < S)[:, None] & (columns < E)
    rows = rows.to(tl.int64)[:, None]

    place = x + batch * x_b + rows * x_s + piece * x_w + columns
    tile = tl.load(place, inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + piece * weight_w + columns, columns < E, other=0.0).to(tl.float32)
    tile = tile * tl.rsqrt(tl.sum(tile * tile, axis=1) / E + eps)[:, None] * factor
    if HAS_ROPE:
        # (even, odd) and (cos, sin) lie alike, so one split of neighbours serves both and stays within a thread.
        waves = tl.load(rope + rows * D + columns % D, inside, other=0.0)
        even, odd = tl.split(tl.reshape(tile, (ROWS, BLOCK // 2, 2)))
        cos, sin = tl.split(tl.reshape(waves, (ROWS, BLOCK // 2, 2)))
        tile = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (ROWS, BLOCK))
    tl.store(place, tile.to(x.dtype.element_ty), inside)


def qk_norm_rope(x_BSWE: Tensor, weight_WE: Tensor, rope_SD2: Tensor | None, heads: int, eps: float) -> Tensor:
    B, S, W, E = x_BSWE.shape
    assert x_BSWE.stride(-1) == weight_WE.stride(-1) == 1 and weight_WE.shape == (W, E)
    rope = weight_WE if rope_SD2 is None else rope_SD2
    assert rope_SD2 is None or (rope.is_contiguous() and rope.shape == (S, E // heads // 2, 2))
    tile = row_tile("qk_norm_rope", E)
    launch(
        qk_norm_rope_kernel,
        (triton.cdiv(S, tile.rows), W, B),
        x_BSWE, weight_WE, rope, S, eps, *x_BSWE.stride()[:3], weight_WE.stride(0),
        config=tile.config, HAS_ROPE=rope_SD2 is not None, D=E // heads, E=E, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return x_BSWE
