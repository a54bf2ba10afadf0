"""Launch configurations as shipped for every chip, so that nobody waits for autotuning; `tune.py` finds others.

None of them has been timed on a GPU yet. They were chosen among those that compile without spills and within the chip's
shared memory (`compiled.py`), by the reasons given here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from helios_kernels import tuned
from helios_kernels.dispatch import INTERPRETER, compiling_ahead, current_chip, find_triton

CHIPS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")

SHARED_MEMORY = {
    "sm_80": 166912,
    **dict.fromkeys(("sm_86", "sm_89", "sm_120"), 101376),
    **dict.fromkeys(("sm_90", "sm_100"), 232448),
    "gfx942": 65536,
}
"""Bytes a program may have, by the vendors' documents. Triton's compiler does not check it."""


@dataclass(frozen=True)
class Config:
    """`tile`: elements of a program of the element-wise kernels. The blocks are attention's; `programs` are those of
    its persistent kernel on a multiprocessor, which may be more than fit; with `specialize` some of its warps load keys
    and values while others compute."""

    num_warps: int
    num_stages: int = 1
    tile: int = 0
    block_q: int = 0
    block_k: int = 0
    programs: int = 1
    specialize: bool = False


@dataclass(frozen=True)
class RowTile:
    """A program's share of [rows, E]: `rows` rows, each padded to `block` columns."""

    rows: int
    block: int
    config: Config


# A tile of 8192 is one padded row of width 5120. What counts is how many rows a multiprocessor has under way, and that
# no instruction is spent on more threads than loads need. With 4 warps (146 registers for the modulated norm on sm_90)
# it has three rows, and issues for 23 microseconds of the 53 that the bytes of a call at stage 2 take; with 16 warps it
# has two, and issues for 55. The same number on CDNA, whose wavefronts are twice as wide.
_ROW = {"cuda": Config(num_warps=4, tile=8192), "hip": Config(num_warps=4, tile=8192)}

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
    "vae_norm_silu": {
        "cuda": Config(num_warps=8, tile=8192),
        "hip": Config(num_warps=4, tile=8192),
        "sm_120": Config(num_warps=8, tile=4096),  # where twice as many spill up to 24 bytes at 64 registers
    },
}

# By head size and whether there is a bias. On Ampere and Ada both factors pass through registers, and 32 keys at a time
# are what leaves none spilled with every Triton from 3.6 to 3.9. Hopper and Blackwell multiply from shared memory: 128
# keys at a time, three buffers; 64 on Blackwell, where 128 spill. With a bias there are a prompt's few keys, all in one
# block, and waiting for memory is what takes the time: few queries at a time, two programs.
_AMPERE = {
    (128, False): Config(num_warps=8, num_stages=3, block_q=128, block_k=32),
    (128, True): Config(num_warps=8, num_stages=2, block_q=128, block_k=32),
    (64, False): Config(num_warps=8, num_stages=3, block_q=128, block_k=64),
    (64, True): Config(num_warps=8, num_stages=2, block_q=128, block_k=64),
}
_HOPPER = {
    (128, False): Config(num_warps=8, num_stages=3, block_q=128, block_k=128),
    (128, True): Config(num_warps=4, num_stages=1, block_q=64, block_k=128, programs=2),
    (64, False): Config(num_warps=8, num_stages=3, block_q=128, block_k=128),
    (64, True): Config(num_warps=4, num_stages=1, block_q=64, block_k=128, programs=2),
}
_BLACKWELL = {**_HOPPER, (128, False): Config(num_warps=8, num_stages=3, block_q=128, block_k=64)}
_CDNA = {
    (head, bias): Config(num_warps=4, num_stages=2, block_q=128, block_k=32 if bias else 64)
    for head in (128, 64)
    for bias in (False, True)
}
_ATTENTION = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), _AMPERE),
    "sm_90": _HOPPER,
    "sm_100": _BLACKWELL,
    "gfx942": _CDNA,
}


_trying: dict[str, Config] = {}


@contextmanager
def trying(kernel: str, chosen: Config | None) -> Iterator[None]:
    """Inside, launches of `kernel` take this configuration, or with None what they would without."""
    if chosen is not None:
        _trying[kernel] = chosen
    try:
        yield
    finally:
        _trying.pop(kernel, None)


def found_here(kernel: str) -> Config | None:
    """What is being tried for `kernel`, or was found on this machine; attention's key has its head size and bias."""
    if kernel in _trying or compiling_ahead():
        return _trying.get(kernel)
    found = tuned.of(find_triton().device)
    own = found.configs.get(kernel) if found else None
    return Config(**own) if own else None


def config(kernel: str) -> Config:
    """The configuration of an element-wise kernel on the chip at hand."""
    chip = current_chip()
    if found := found_here(kernel):
        return found
    if chip == INTERPRETER:
        return _INTERPRETED
    known = _ELEMENTWISE[kernel]
    return known.get(chip) or known["hip" if chip.startswith("gfx") else "cuda"]


def attention_config(head: int, *, bias: bool) -> Config:
    """Attention's on the chip at hand; head sizes below 64 take that of 64."""
    chip = current_chip()
    if found := found_here(f"attention {max(head, 64)}{' bias' if bias else ''}"):
        return found
    if chip == INTERPRETER:
        return Config(num_warps=1, block_q=128, block_k=128)
    return _ATTENTION[chip][max(head, 64), bias]


def row_tile(kernel: str, width: int) -> RowTile:
    """How a program of `kernel` is cut from rows of `width` channels."""
    chosen = config(kernel)
    block = 1 << (width - 1).bit_length()
    return RowTile(max(1, chosen.tile // block), block, chosen)
