"""The convolution as one product over TMA boxes, for Hopper and Blackwell data-centre chips.

A program makes a block of positions of one frame, with all output channels. For each of the 27 taps it multiplies the
block shifted by the tap with the tap's weights. The boxes are cut by coordinates: a block that reaches past the frame
reads zeros there, which is the padding in space, and the frame of a tap is the causal shift in time.

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
from helios_kernels.tuning import convolution_config


@triton.jit
def _store(
    total, bias, shortcut, out, place, exists, first,
    N: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SHORTCUT: tl.constexpr,
):  # fmt: skip
    """Add what comes behind the convolution to N channels from `first` on, and round once."""
    columns = first + tl.arange(0, N)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + columns).to(tl.float32)
    if HAS_SHORTCUT:
        total += tl.load(shortcut + place + columns, exists, other=0.0).to(tl.float32)
    tl.store(out + place + columns, total.to(out.dtype.element_ty), exists)


@triton.jit(do_not_specialize=["B", "T", "H", "W"])
def causal_conv_kernel(
    x,  # [B, T + 2, H, W, C]
    weight,  # [N, 27, C]
    bias,  # [N]
    shortcut,  # [B, T, H, W, N]
    out,  # [B, T, H, W, N]
    B, T, H, W,
    x_b, x_t,  # strides in elements; within a frame x is contiguous
    C: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,  # N = N1 + N2
    HAS_BIAS: tl.constexpr, HAS_SHORTCUT: tl.constexpr, WIDE: tl.constexpr,
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
    place = ((batch * T + frame).to(tl.int64) * H * W + rows * W + columns)[:, None] * N
    _store(first, bias, shortcut, out, place, exists, 0, N1, HAS_BIAS, HAS_SHORTCUT)
    _store(second, bias, shortcut, out, place, exists, N1, N2, HAS_BIAS, HAS_SHORTCUT)


def run(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
    B, frames, H, W, C = x.shape
    N, T = weight.shape[0], frames - 2
    near, far = SPLIT[N]
    out = torch.empty((B, T, H, W, N), dtype=x.dtype, device=x.device)
    chosen = convolution_config(N)
    rows, columns = chosen.block_q, chosen.block_k
    triton.set_allocator(descriptor_memory(x.device))
    launch(
        causal_conv_kernel,
        (triton.cdiv(H, rows) * triton.cdiv(W, columns), B * T),
        x, weight, weight if bias is None else bias, x if shortcut is None else shortcut, out,
        B, T, H, W, x.stride(0), x.stride(1),
        config=chosen, C=C, N1=near, N2=far, HAS_BIAS=bias is not None, HAS_SHORTCUT=shortcut is not None,
        WIDE=current_chip() == INTERPRETER, ROWS=rows, COLUMNS=columns, BLOCK_C=SLICE[C],
    )  # fmt: skip
    return out


SPLIT = {96: (64, 32), 192: (128, 64)}
"""Output channels, and the two powers of two that they are."""

SLICE = {96: 32, 192: 64}
"""Input channels, and those of a step: 64 are the widest box with swizzled rows."""
