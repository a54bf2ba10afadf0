"""Launch configurations as shipped for every chip, and what they compile to: nobody waits for autotuning.

None of them has been timed on a GPU yet. They were chosen among those that compile without spills and within the chip's
shared memory (`compiled.py`), by the reasons given here.
"""

from __future__ import annotations

from dataclasses import dataclass

from helios_kernels.dispatch import INTERPRETER, current_chip

CHIPS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")

SHARED_MEMORY = {"sm_80": 166912, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
"""Bytes a program may have, by the vendors' documents. Triton's compiler does not check it."""

MULTIPROCESSORS = {"sm_90": 132, "sm_100": 148, INTERPRETER: 2}
"""How many persistent programs to start. More than the chip has would wait in line, fewer leave some idle."""


@dataclass(frozen=True)
class Config:
    """`tile`: elements of a program of the element-wise kernels. The blocks are attention's."""

    num_warps: int
    num_stages: int = 1
    tile: int = 0
    block_q: int = 0
    block_k: int = 0
    programs_per_multiprocessor: int = 1


@dataclass(frozen=True)
class RowTile:
    """A program's share of [rows, E]: `rows` rows, each padded to `block` columns."""

    rows: int
    block: int
    config: Config


# A tile of 8192 is one padded row of width 5120. With 8 warps a thread holds 32 elements, two 16-byte loads of bfloat16
# short of four, and a multiprocessor has room for several programs, so that one loads while another reduces.
# CDNA's wavefronts are twice as wide: half as many.
_ROW = {"cuda": Config(num_warps=8, tile=8192), "hip": Config(num_warps=4, tile=8192)}

# No reduction: only enough bytes in flight.
_FLAT = {"cuda": Config(num_warps=4, tile=1024), "hip": Config(num_warps=4, tile=1024)}

_INTERPRETED = Config(num_warps=1, tile=2**18)

_ELEMENTWISE = {
    "modulated_norm": _ROW,
    "gated_residual": _ROW,
    "qk_norm_rope": _ROW,
    "quantize": {"cuda": Config(num_warps=16, tile=16384), "hip": Config(num_warps=8, tile=16384)},
    "renoise": _FLAT,
    "dmd_step": _FLAT,
    "vae_norm_silu": {"cuda": Config(num_warps=8, tile=8192), "hip": Config(num_warps=4, tile=8192)},
}

_ATTENTION = {
    ("attention", "sm_80"): {
        128: Config(num_warps=8, num_stages=3, block_q=128, block_k=64),
        64: Config(num_warps=4, num_stages=3, block_q=128, block_k=64),
    },
    ("attention", "sm_89"): {
        128: Config(num_warps=8, num_stages=3, block_q=128, block_k=64),
        64: Config(num_warps=4, num_stages=3, block_q=128, block_k=64),
    },
    ("attention", "sm_90"): {
        128: Config(num_warps=8, num_stages=3, block_q=128, block_k=64),
        64: Config(num_warps=4, num_stages=3, block_q=128, block_k=64),
    },
    ("attention", "sm_100"): {
        128: Config(num_warps=8, num_stages=3, block_q=128, block_k=64),
        64: Config(num_warps=4, num_stages=3, block_q=128, block_k=64),
    },
    ("attention", "gfx942"): {
        128: Config(num_warps=4, num_stages=2, block_q=128, block_k=64),
        64: Config(num_warps=4, num_stages=2, block_q=128, block_k=64),
    },
    ("attention_tma", "sm_90"): {
        128: Config(num_warps=8, num_stages=2, block_q=128, block_k=128),
        64: Config(num_warps=8, num_stages=2, block_q=128, block_k=128),
    },
    ("attention_tma", "sm_100"): {
        128: Config(num_warps=8, num_stages=2, block_q=128, block_k=128),
        64: Config(num_warps=8, num_stages=2, block_q=128, block_k=128),
    },
}


def config(kernel: str, head: int | None = None) -> Config:
    """The configuration of `kernel` on the chip at hand; attention's by head size, small ones as the next larger."""
    chip = current_chip()
    if head is None:
        if chip == INTERPRETER:
            return _INTERPRETED
        return _ELEMENTWISE[kernel]["hip" if chip.startswith("gfx") else "cuda"]
    if chip == INTERPRETER:
        return Config(num_warps=1, block_q=128, block_k=128)
    by_head = _ATTENTION[kernel, chip]
    return by_head[min(size for size in by_head if size >= head)]


def row_tile(kernel: str, width: int) -> RowTile:
    """How a program of `kernel` is cut from rows of `width` channels."""
    chosen = config(kernel)
    block = 1 << (width - 1).bit_length()
    return RowTile(max(1, chosen.tile // block), block, chosen)
