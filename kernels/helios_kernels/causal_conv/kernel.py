"""The convolution as one product over TMA boxes, for Hopper and Blackwell data-centre chips.

A program makes a block of positions of one frame, with all output channels. For each of the 27 taps it multiplies the
block shifted by the tap with the tap's weights. The boxes are cut by coordinates: a block that reaches past the frame
reads zeros there, which is the padding in space, and the frame of a tap is the causal shift in time.

All channels of a position are in one program, so the norm over them and SiLU come before the result leaves its
registers: what the next convolution reads is written at once, and the sum only where a later block adds it.

The numbers of channels are no powers of two, which Triton's products are made of: 96 are 64 and 32 side by side, which
fill the matrix units (cuDNN's tiles of 128 are three quarters full), and 192 are 128 and 64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.dispatch import INTERPRETER, current_chip
from helios_kernels.launch import descriptor_memory, launch
from helios_kernels.tuning import config
from helios_kernels.vae_norm_silu import NORM_EPS
from helios_kernels.vae_norm_silu.kernel import apply_silu


@triton.jit
def _sum(
    total, bias, shortcut, out, added, place, exists, first,
    N: tl.constexpr, HAS_SHORTCUT: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Add what comes behind the convolution to N channels from `first` on, round once, and store it if KEPT.

    `added` are the places of the positions in `shortcut`, `place` those in `out`.
    """
    columns = first + tl.arange(0, N)[None, :]
    total += tl.load(bias + columns).to(tl.float32)
    if HAS_SHORTCUT:
        total += tl.load(shortcut + added + columns, exists, other=0.0).to(tl.float32)
    rounded = total.to(out.dtype.element_ty)
    if KEPT:
        tl.store(out + place + columns, rounded, exists)
    return rounded.to(tl.float32)


@triton.jit
def _store_normed(total, inverse, gamma, normed, place, exists, first, N: tl.constexpr, ROOT: tl.constexpr):
    """Store SiLU of the norm of N channels from `first` on, with `inverse` [positions] one over their lengths."""
    columns = first + tl.arange(0, N)[None, :]
    total = total * inverse[:, None] * (tl.load(gamma + columns).to(tl.float32) * ROOT)
    tl.store(normed + place + columns, apply_silu(total).to(normed.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["B", "T", "H", "W"])
def causal_conv_kernel(
    x,  # [B, T + 2, H, W, C]
    weight,  # [N, 27, C]
    bias,  # [N]
    shortcut,  # [B, T, H, W, N]
    out,  # [B, T, H, W, N]; with a norm and a shortcut the shortcut itself, with a norm alone not written
    gamma,  # [N]
    normed,  # [B, T, H, W, N], contiguous within each batch item
    B, T, H, W,
    x_b, x_t, shortcut_b, out_b, normed_b,  # strides in elements; within a batch item all are contiguous
    EPS: tl.constexpr,
    ROOT: tl.constexpr,  # sqrt(N)
    C: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,  # N = N1 + N2
    HAS_SHORTCUT: tl.constexpr, NORM: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    N: tl.constexpr = N1 + N2
    SLICES: tl.constexpr = C // BLOCK_C
    boxes = tl.make_tensor_descriptor(x, [B, T + 2, H, W, C], [x_b, x_t, W * C, C, 1], [1, 1, ROWS, COLUMNS, BLOCK_C])
    near = tl.make_tensor_descriptor(weight, [N, 27 * C], [27 * C, 1], [N1, BLOCK_C])
    far = tl.make_tensor_descriptor(weight, [N, 27 * C], [27 * C, 1], [N2, BLOCK_C])
    across = tl.cdiv(W, COLUMNS)
    column = tl.program_id(0) % across * COLUMNS
    row = tl.program_id(0) // across * ROWS
    batch, frame = tl.program_id(1) // T, tl.program_id(1) % T

    first = tl.zeros((ROWS * COLUMNS, N1), tl.float32)
    second = tl.zeros((ROWS * COLUMNS, N2), tl.float32)
    for step in range(27 * SLICES):
        tap, channel = step // SLICES, step % SLICES * BLOCK_C
        box = boxes.load([batch, frame + tap // 9, row + tap // 3 % 3 - 1, column + tap % 3 - 1, channel])
        box = box.reshape(ROWS * COLUMNS, BLOCK_C)
        ours, others = near.load([0, step * BLOCK_C]), far.load([N1, step * BLOCK_C])
        if WIDE:
            box, ours, others = box.to(tl.float32), ours.to(tl.float32), others.to(tl.float32)
        first = tl.dot(box, ours.T, first)
        second = tl.dot(box, others.T, second)

    position = tl.arange(0, ROWS * COLUMNS)
    rows, columns = row + position // COLUMNS, column + position % COLUMNS
    exists = ((rows < H) & (columns < W))[:, None]
    place = (frame.to(tl.int64) * H * W + rows * W + columns)[:, None] * N
    KEPT: tl.constexpr = HAS_SHORTCUT or not NORM
    added, at = place + batch.to(tl.int64) * shortcut_b, place + batch.to(tl.int64) * out_b
    first = _sum(first, bias, shortcut, out, added, at, exists, 0, N1, HAS_SHORTCUT, KEPT)
    second = _sum(second, bias, shortcut, out, added, at, exists, N1, N2, HAS_SHORTCUT, KEPT)
    if NORM:
        length = tl.sqrt(tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1))
        inverse = 1.0 / tl.maximum(length, EPS)
        at = place + batch.to(tl.int64) * normed_b
        _store_normed(first, inverse, gamma, normed, at, exists, 0, N1, ROOT)
        _store_normed(second, inverse, gamma, normed, at, exists, N1, N2, ROOT)


def causal_conv(x_BTHWC: Tensor, weight_NCTHW: Tensor, bias_N: Tensor, shortcut_BTHWN: Tensor | None = None) -> Tensor:
    B, frames, H, W, _ = x_BTHWC.shape
    shape = (B, frames - 2, H, W, weight_NCTHW.shape[0])
    out = torch.empty(shape, dtype=x_BTHWC.dtype, device=x_BTHWC.device)
    _convolve(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN, out)
    return out


def causal_conv_norm(
    x_BTHWC: Tensor,
    weight_NCTHW: Tensor,
    bias_N: Tensor,
    shortcut_BTHWN: Tensor | None,
    gamma_N: Tensor,
    out_BTHWN: Tensor,
) -> Tensor:
    total = out_BTHWN if shortcut_BTHWN is None else shortcut_BTHWN
    _convolve(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN, total, gamma_N, out_BTHWN)
    return out_BTHWN


def _convolve(
    x: Tensor,
    weight_NCTHW: Tensor,
    bias: Tensor,
    shortcut: Tensor | None,
    out: Tensor,
    gamma: Tensor | None = None,
    normed: Tensor | None = None,
) -> None:
    """Write the convolution with its sums to `out`; with `gamma` SiLU of its norm to `normed`, and the sums only if
    there is a shortcut, which `out` is then."""
    B, frames, H, W, C = x.shape
    weight, T = weight_NCTHW.permute(0, 2, 3, 4, 1), frames - 2
    N = weight.shape[0]
    near, far = SPLIT[N]
    assert x[0].is_contiguous() and out[0].is_contiguous() and (normed is None or normed[0].is_contiguous())
    assert shortcut is None or shortcut[0].is_contiguous()
    added, written = out if shortcut is None else shortcut, out if normed is None else normed
    chosen = config(f"causal_conv {N}")
    rows, columns = chosen.block_q, chosen.block_k
    triton.set_allocator(descriptor_memory(x.device))
    launch(
        causal_conv_kernel,
        (triton.cdiv(H, rows) * triton.cdiv(W, columns), B * T),
        x, weight, bias, added, out, weight if gamma is None else gamma, written,
        B, T, H, W, x.stride(0), x.stride(1), added.stride(0), out.stride(0), written.stride(0),
        config=chosen, EPS=NORM_EPS, ROOT=N**0.5, C=C, N1=near, N2=far,
        HAS_SHORTCUT=shortcut is not None, NORM=normed is not None, WIDE=current_chip() == INTERPRETER, ROWS=rows,
        COLUMNS=columns, BLOCK_C=SLICE[C],
    )  # fmt: skip


SPLIT = {96: (64, 32), 192: (128, 64)}
"""Output channels, and the two powers of two that they are."""

SLICE = {96: 32, 192: 64}
"""Input channels, and those of a step: 64 are the widest box with swizzled rows."""
