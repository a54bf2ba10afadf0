"""What the kernels over rows of the stream share: which program does which rows, and LayerNorm of a tile of rows.

A program does ROWS rows, all history or all noisy, so that one pair of modulation rows serves the whole tile.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of_program(S, split, ROWS: tl.constexpr):
    """(row numbers [ROWS], which of them exist, whether they are noisy ones) of program `program_id(0)`."""
    program = tl.program_id(0)
    history_programs = tl.cdiv(split, ROWS)
    noisy = program >= history_programs
    first = tl.where(noisy, split + (program - history_programs) * ROWS, program * ROWS)
    rows = first + tl.arange(0, ROWS)
    return rows, rows < tl.where(noisy, S, split), noisy


def row_programs(S: int, split: int, rows: int) -> int:
    """How many programs `rows_of_program` needs."""
    return triton.cdiv(split, rows) + triton.cdiv(S - split, rows)


@triton.jit
def layer_norm_tile(x, inside, E: tl.constexpr, eps):
    """(x - mean) / sqrt(variance + eps) along axis 1 of a float32 tile that is 0 where not `inside`."""
    mean = tl.sum(x, axis=1) / E
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / E
    return centred * tl.rsqrt(variance + eps)[:, None]
