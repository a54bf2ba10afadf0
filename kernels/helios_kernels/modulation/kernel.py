from __future__ import annotations

from dataclasses import dataclass
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


def row_programs(S: int, split: int, rows: int) -> int:
    """Return how many programs `rows_of_program` needs."""
    return triton.cdiv(split, rows) + triton.cdiv(S - split, rows)


@triton.jit
def layer_norm_tile(x, inside, E: tl.constexpr, eps):
    """Return (x - mean) / sqrt(variance + eps) along axis 1 of a float32 tile that is 0 where not `inside`."""
    mean = tl.sum(x, axis=1) / E
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / E
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit
def store_normed(
    normed, out, scales, place, row, inside, exists, unrounded,
    FP8: tl.constexpr, SMALLEST: tl.constexpr, LARGEST: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Store a norm at `place` of `out`: as it is, or in fp8, the type of `unrounded` first, and the scales of `row`."""
    if FP8:
        tile = normed.to(unrounded.dtype.element_ty).to(tl.float32)
        tile, scale = round_tile(tile, SMALLEST, LARGEST, INTERPRETED)
        tl.store(out + place, tile.to(out.dtype.element_ty), inside)
        tl.store(scales + row, scale, exists)
    else:
        tl.store(out + place, normed.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["S", "split"])
def modulated_norm_kernel(
    x,  # [B, S, E]
    out,  # [B, S, E], in fp8 or the type of x
    scales,  # [B, S, 1] float32, with fp8
    scale,  # [B, 2, E] float32
    shift,  # [B, 2, E] float32
    S, split, eps,
    x_b, x_s, out_b, out_s, scale_b, scale_r, shift_b, shift_r,  # strides in elements; those along E are 1
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

    tile = tl.load(x + batch * x_b + rows * x_s + columns, inside, other=0.0).to(tl.float32)
    factor = base + tl.load(scale + batch * scale_b + side * scale_r + columns, columns < E, other=0.0).to(tl.float32)
    offset = tl.load(shift + batch * shift_b + side * shift_r + columns, columns < E, other=0.0).to(tl.float32)
    tile = layer_norm_tile(tile, inside, E, eps) * factor + offset
    place = batch * out_b + rows * out_s + columns
    store_normed(
        tile, out, scales, place, batch * S + row, inside, exists, x, FP8, SMALLEST, LARGEST, INTERPRETED
    )  # fmt: skip


_UNROUNDED = {"FP8": False, "SMALLEST": 0.0, "LARGEST": 0.0, "INTERPRETED": False}


@dataclass(frozen=True)
class Result:
    """Room for a norm. `scales` stands in for a tensor that is never read where the type is not fp8."""

    out: Tensor
    scales: Tensor
    constants: dict[str, Any]

    @classmethod
    def of(cls, x: Tensor, rows: int, fp8: torch.dtype | None) -> Result:
        shape = (x.shape[0], rows, x.shape[2])
        if fp8 is not None:
            return cls(*empty(shape, fp8, x.device), {"FP8": True, **limits(fp8)})
        return cls(torch.empty(shape, dtype=x.dtype, device=x.device), x, _UNROUNDED)

    @property
    def tensors(self) -> Tensor | tuple[Tensor, Tensor]:
        return (self.out, self.scales) if self.constants["FP8"] else self.out


def run_norm(
    x: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float, base: float, fp8: torch.dtype | None = None
) -> Any:
    """Return `norm(x) * (base + scale) + shift`, or its values and scales in `fp8`; shapes as in `modulated_norm`."""
    B, S, E = x.shape
    assert x.stride(-1) == scale.stride(-1) == shift.stride(-1) == 1
    result = Result.of(x, S, fp8)
    tile = row_tile("modulated_norm", E)
    launch(
        modulated_norm_kernel,
        (row_programs(S, split, tile.rows), B),
        x, result.out, result.scales, scale, shift, S, split, eps,
        *x.stride()[:2], *result.out.stride()[:2], *row_strides(scale), *row_strides(shift),
        config=tile.config, base=base, **result.constants, E=E, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return result.tensors


def row_strides(rows_B2E: Tensor) -> tuple[int, int]:
    """Return (batch, row) strides; a single batch item serves all."""
    return (rows_B2E.stride(0) if rows_B2E.shape[0] > 1 else 0, rows_B2E.stride(1))


@triton.jit(do_not_specialize=["S", "split", "y_from", "norm_from"])
def gated_residual_kernel(
    x,  # [B, S, E], changed in place
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
    HAS_GATE: tl.constexpr, HAS_NORM: tl.constexpr,
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
    if noisy | (y_from == 0):
        added = tl.load(y + batch * y_b + (rows - y_from) * y_s + columns, inside, other=0.0).to(tl.float32)
        if HAS_GATE:
            factor = tl.load(gate + batch * gate_b + side * gate_r + columns, columns < E, other=0.0).to(tl.float32)
            added = added * factor
        rounded = (tile + added).to(x.dtype.element_ty)
        tl.store(place, rounded, inside)
        tile = rounded.to(tl.float32)
    if HAS_NORM:  # noqa: SIM102 (decided by the compiler, the inner one by the program)
        if noisy | (norm_from == 0):
            weight = tl.load(scale + batch * scale_b + side * scale_r + columns, columns < E, other=0.0).to(tl.float32)
            offset = tl.load(shift + batch * shift_b + side * shift_r + columns, columns < E, other=0.0).to(tl.float32)
            normed = layer_norm_tile(tile, inside, E, eps) * (base + weight) + offset
            at, scaled = batch * out_b + (rows - norm_from) * out_s + columns, batch * (S - norm_from) + row - norm_from
            store_normed(normed, out, scales, at, scaled, inside, exists, x, FP8, SMALLEST, LARGEST, INTERPRETED)


def run_residual(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    split: int,
    norm: tuple[Tensor, Tensor] | None = None,
    base: float = 1.0,
    eps: float = 0.0,
    norm_from: int = 0,
    fp8: torch.dtype | None = None,
) -> Any:
    """Add `y * gate` to x in place; return x or, with `norm` (scale, shift), `norm(x) * (base + scale) + shift`, which
    are two tensors in `fp8`."""
    B, S, E = x.shape
    y_from = S - y.shape[1]
    assert y_from in (0, split) and x.stride(-1) == y.stride(-1) == 1
    # Absent tensors are never read; x stands in for their pointers.
    scale, shift = norm or (x[:, :1], x[:, :1])
    result = Result.of(x, S - norm_from, fp8) if norm else Result(x, x, _UNROUNDED)
    gates = x[:, :1] if gate is None else gate
    tile = row_tile("gated_residual", E)
    launch(
        gated_residual_kernel,
        (row_programs(S, split, tile.rows), B),
        x, y, gates, scale, shift, result.out, result.scales, S, split, y_from, norm_from, eps,
        *x.stride()[:2], *y.stride()[:2], *row_strides(gates), *row_strides(scale), *row_strides(shift),
        *result.out.stride()[:2],
        config=tile.config, HAS_GATE=gate is not None, HAS_NORM=norm is not None, base=base, **result.constants,
        E=E, ROWS=tile.rows, BLOCK=tile.block,
    )  # fmt: skip
    return result.tensors
