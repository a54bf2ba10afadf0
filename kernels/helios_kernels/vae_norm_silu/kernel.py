from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.launch import launch
from helios_kernels.tuning import row_tile
from helios_kernels.vae_norm_silu import NORM_EPS


@triton.jit
def apply_silu(x):
    """Return x * sigmoid(x), the sigmoid as in quantize's `tanh_gelu`."""
    root = tl.rsqrt(1.0 + tl.exp2(-1.4426950408889634 * x))
    return x * (root * root)


@triton.jit(do_not_specialize=["count", "past_count"])
def vae_norm_silu_kernel(
    x,  # [B, positions, C]
    past,  # [B, past positions, C]
    gamma,  # [C]
    out,  # [B, past and x, C]
    bias,  # [C]
    shortcut,  # [B, positions, C]
    count,  # positions of out
    past_count,
    x_b, past_b, out_b, shortcut_b,  # strides in elements; within a batch item all are contiguous
    EPS: tl.constexpr,
    ROOT: tl.constexpr,  # sqrt(C)
    HAS_PAST: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
    C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    own = rows - past_count
    inside = (rows < count) & (columns < C)

    places = x + batch * x_b + own * C + columns
    tile = tl.load(places, inside & (own >= 0), other=0.0).to(tl.float32)
    if HAS_BIAS:  # rounded after each sum, as separate passes would
        tile += tl.load(bias + columns, columns < C, other=0.0).to(tl.float32)
        tile = tile.to(x.dtype.element_ty).to(tl.float32)
    if HAS_SHORTCUT:
        added = tl.load(shortcut + batch * shortcut_b + own * C + columns, inside & (own >= 0), other=0.0)
        total = (tile + added.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(places, total, inside & (own >= 0))
        tile = total.to(tl.float32)
    length = tl.sqrt(tl.sum(tile * tile, axis=1))
    factor = tl.load(gamma + columns, columns < C, other=0.0).to(tl.float32) * ROOT
    tile = tile * (1.0 / tl.maximum(length, EPS))[:, None] * factor
    if SILU:
        tile = apply_silu(tile)
    if HAS_BIAS and not HAS_PAST:
        tile = tl.where(own < 0, 0.0, tile)
    if HAS_PAST:
        remembered = tl.load(past + batch * past_b + rows * C + columns, inside & (own < 0), other=0.0).to(tl.float32)
        tile = tl.where(own < 0, remembered, tile)
    tl.store(out + batch * out_b + rows * C + columns, tile.to(out.dtype.element_ty), inside)


def vae_norm_silu(x_BTHWC: Tensor, gamma_C: Tensor, out_BTHWC: Tensor, *, silu: bool = True) -> Tensor:
    return _fill(x_BTHWC, None, gamma_C, out_BTHWC, silu=silu)


def causal_pad(x_BTHWC: Tensor, past_BPHWC: Tensor | None, out_BTHWC: Tensor, gamma_C: Tensor) -> Tensor:
    return _fill(x_BTHWC, past_BPHWC, gamma_C, out_BTHWC)


def causal_sum_pad(
    x_BTHWC: Tensor,
    bias_C: Tensor,
    shortcut_BTHWC: Tensor | None,
    past_BPHWC: Tensor | None,
    out_BTHWC: Tensor,
    gamma_C: Tensor,
) -> Tensor:
    return _fill(x_BTHWC, past_BPHWC, gamma_C, out_BTHWC, bias=bias_C, shortcut=shortcut_BTHWC)


def _fill(
    x: Tensor,
    past: Tensor | None,
    gamma: Tensor,
    out: Tensor,
    *,
    silu: bool = True,
    bias: Tensor | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """Fill `out` with the frames of `past`, or zeros, and then the norm of x.

    `bias` and `shortcut` are added to x first; with a shortcut the sum is kept in x."""
    B, T, H, W, C = x.shape
    padded = out.shape[1] - T
    # A convolution may have left another layout, which a copy corrects; the buffers are the caller's own.
    assert shortcut is None or (x[0].is_contiguous() and shortcut[0].is_contiguous())
    x = x if x[0].is_contiguous() else x.contiguous()
    assert out[0].is_contiguous() and (past is None or past[0].is_contiguous())
    assert past is None or past.shape == (B, padded, H, W, C)
    tile = row_tile("vae_norm_silu", C)
    count = out.shape[1] * H * W
    stand_in, added = x if past is None else past, x if shortcut is None else shortcut
    launch(
        vae_norm_silu_kernel,
        (triton.cdiv(count, tile.rows), B),
        x, stand_in, gamma, out, x if bias is None else bias, added,
        count, padded * H * W, x.stride(0), stand_in.stride(0), out.stride(0), added.stride(0),
        config=tile.config, EPS=NORM_EPS, ROOT=C**0.5, HAS_PAST=past is not None, SILU=silu, HAS_BIAS=bias is not None,
        HAS_SHORTCUT=shortcut is not None, C=C, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return out
