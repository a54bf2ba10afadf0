"""One kernel for sums and norms of the stream. A program has whole rows, so that a row's mean, variance and largest
magnitude need no second pass, and the sum that a norm reads never leaves its registers."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.launch import launch
from helios_kernels.quantize.kernel import empty, limits, round_tile
from helios_kernels.tuning import row_tile


@triton.jit
def rows_of_program(S, split, ROWS: tl.constexpr):
    """Return (row numbers [ROWS], which of them exist, whether they are noisy) of program `program_id(0)`.

    A program does ROWS rows, all history or all noisy, so that one pair of modulation rows serves the whole tile.
    """
    program = tl.program_id(0)
    history_programs = tl.cdiv(split, ROWS)
    noisy = program >= history_programs
    first = tl.where(noisy, split + (program - history_programs) * ROWS, program * ROWS)
    rows = first + tl.arange(0, ROWS)
    return rows, rows < tl.where(noisy, S, split), noisy


@triton.jit
def layer_norm_tile(x, inside, E: tl.constexpr, eps):
    """Return (x - mean) / sqrt(variance + eps) along axis 1 of a float32 tile that is 0 where not `inside`."""
    mean = tl.sum(x, axis=1) / E
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / E
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit(do_not_specialize=["S", "split", "y_from", "norm_from"])
def stream_kernel(
    x,  # [B, S, E], changed in place with a sum
    y,  # [B, S - y_from, E]
    gate,  # [B, 2, E] float32
    scale,  # [B, 2, E] float32
    shift,  # [B, 2, E] float32
    out,  # [B, S - norm_from, E], the norm of the new x, in fp8 or the type of x
    scales,  # [B, S - norm_from, 1] float32, with fp8
    S, split,
    y_from,  # 0 or split
    norm_from,  # 0 or split
    eps,
    x_b, x_s, y_b, y_s, gate_b, gate_r, scale_b, scale_r, shift_b,  # strides in elements; those along E are 1
    shift_r, out_b, out_s,
    HAS_SUM: tl.constexpr, HAS_GATE: tl.constexpr, HAS_NORM: tl.constexpr,
    base: tl.constexpr,  # 1 for modulation, 0 for a plain weight
    FP8: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, INTERPRETED: tl.constexpr,
    E: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, exists, noisy = rows_of_program(S, split, ROWS)
    batch = tl.program_id(1).to(tl.int64)
    side = noisy.to(tl.int64)
    row = rows.to(tl.int64)
    rows = row[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = exists[:, None] & (columns < E)

    place = x + batch * x_b + rows * x_s + columns
    tile = tl.load(place, inside, other=0.0).to(tl.float32)
    if HAS_SUM:  # noqa: SIM102 (decided by the compiler, the inner one by the program)
        if noisy | (y_from == 0):
            added = tl.load(y + batch * y_b + (rows - y_from) * y_s + columns, inside, other=0.0).to(tl.float32)
            if HAS_GATE:
                factor = tl.load(gate + batch * gate_b + side * gate_r + columns, columns < E, other=0.0)
                added = added * factor.to(tl.float32)
            rounded = (tile + added).to(x.dtype.element_ty)
            tl.store(place, rounded, inside)
            tile = rounded.to(tl.float32)
    if HAS_NORM:  # noqa: SIM102
        if noisy | (norm_from == 0):
            weight = tl.load(scale + batch * scale_b + side * scale_r + columns, columns < E, other=0.0).to(tl.float32)
            offset = tl.load(shift + batch * shift_b + side * shift_r + columns, columns < E, other=0.0).to(tl.float32)
            normed = layer_norm_tile(tile, inside, E, eps) * (base + weight) + offset
            if FP8:  # what is rounded to fp8 is what a norm without fp8 would store
                normed = normed.to(x.dtype.element_ty).to(tl.float32)
                normed, row_scale = round_tile(normed, SMALLEST, LARGEST, INTERPRETED)
                tl.store(scales + batch * (S - norm_from) + row - norm_from, row_scale, exists)
            at = batch * out_b + (rows - norm_from) * out_s + columns
            tl.store(out + at, normed.to(out.dtype.element_ty), inside)


def _run(
    x: Tensor,
    split: int,
    norm: tuple[Tensor, Tensor] | None,
    y: Tensor | None = None,
    gate: Tensor | None = None,
    *,
    base: float = 1.0,
    eps: float = 0.0,
    norm_from: int = 0,
    fp8: bool = False,
) -> Any:
    """Add `y * gate` to x in place, if there is a `y`; return x or, with `norm` (scale, shift), `norm(x) * (base +
    scale) + shift` of the rows from `norm_from` on, with `fp8` (values, scales)."""
    B, S, E = x.shape
    y_from = 0 if y is None else S - y.shape[1]
    assert y_from in (0, split) and x.stride(-1) == 1 and (y is None or y.stride(-1) == 1)
    # Absent tensors are never read; x stands in for their pointers.
    added, gates, (scale, shift) = x if y is None else y, x[:, :1] if gate is None else gate, norm or (x[:, :1],) * 2
    out, scales = x, x
    if fp8:
        out, scales = empty((B, S - norm_from, E), x.device)
    elif norm:
        out = torch.empty((B, S - norm_from, E), dtype=x.dtype, device=x.device)
    tile = row_tile("modulated_norm" if y is None else "gated_residual", E)
    launch(
        stream_kernel,
        (triton.cdiv(split, tile.rows) + triton.cdiv(S - split, tile.rows), B),
        x, added, gates, scale, shift, out, scales, S, split, y_from, norm_from, eps,
        *x.stride()[:2], *added.stride()[:2], *_strides(gates), *_strides(scale), *_strides(shift), *out.stride()[:2],
        config=tile.config, HAS_SUM=y is not None, HAS_GATE=gate is not None, HAS_NORM=norm is not None, base=base,
        FP8=fp8, **limits(), E=E, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return (out, scales) if fp8 else out


def _strides(rows_B2E: Tensor) -> tuple[int, int]:
    """Return (batch, row) strides; a single batch item serves all."""
    assert rows_B2E.stride(-1) == 1
    return (rows_B2E.stride(0) if rows_B2E.shape[0] > 1 else 0, rows_B2E.stride(1))


# The operations, as the package declares them


def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    return _run(x_BSE, split, (scale, shift), eps=eps)


def modulated_norm_fp8(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> tuple[Tensor, Tensor]:
    return _run(x_BSE, split, (scale, shift), eps=eps, fp8=True)


def gated_residual(x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, split: int) -> Tensor:
    return _run(x_BSE, split, None, y_BSE, gate)


def gated_residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> Tensor:
    return _run(x_BSE, split, (scale, shift), y_BSE, gate, eps=eps)


def gated_residual_modulated_norm_fp8(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    return _run(x_BSE, split, (scale, shift), y_BSE, gate, eps=eps, fp8=True)


def gated_residual_layer_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor | None, weight_E: Tensor, bias_E: Tensor, split: int, eps: float
) -> Tensor:
    rows = weight_E.expand(1, 2, -1), bias_E.expand(1, 2, -1)  # the same for history and noisy rows
    return _run(x_BSE, split, rows, y_BSE, gate, base=0.0, eps=eps, norm_from=split)
