from __future__ import annotations

from math import prod

import torch

from helios_kernels.case import HALVES, Case, Op
from helios_kernels.causal_conv import CHIPS, causal_conv, reference

PAST = 2
TAPS = 27


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    sizes = case.sizes
    batch, frames, channels = sizes.get("B", 1), sizes["T"], sizes["C"]
    picture = sizes["H"], sizes["W"]
    wide = torch.randn(batch, PAST + frames + 1, *picture, channels, device=device)
    # Channels-last, as `WanVAE.prepare` lays weights out.
    weight = torch.randn(channels, 3, 3, 3, channels, device=device) * (TAPS * channels) ** -0.5
    shortcut = torch.randn(batch, frames, *picture, channels, device=device).to(dtype)
    return {
        "x_BTHWC": wide.to(dtype)[:, 1:],
        "weight_NCTHW": weight.to(dtype).movedim(-1, 1),
        "bias_N": torch.randn(channels, device=device).to(dtype) if sizes.get("sums") else None,
        "shortcut_BTHWN": shortcut if sizes.get("sums") == "shortcut" else None,
    }


def _positions(case: Case) -> int:
    return prod(case.sizes.get(name, 1) for name in ("B", "T", "H", "W"))


def _bytes(case: Case, itemsize: int) -> int:
    """Count each input frame and each result once, and the weights."""
    sizes, sums = case.sizes, {None: 0, "bias": 0, "shortcut": 1}[case.sizes.get("sums")]
    frames = 2 + sums + PAST / sizes["T"]
    return round((_positions(case) * frames * sizes["C"] + TAPS * sizes["C"] ** 2) * itemsize)


def _flops(case: Case) -> int:
    return 2 * TAPS * _positions(case) * case.sizes["C"] ** 2


WIDTHS = ((192, 11, 192, 320), (96, 5, 384, 640))
"""Channels, frames, height and width: the decoder's finest levels at 640x384, some frames of each."""

CAUSAL_CONV = Op(
    name="causal_conv",
    run=causal_conv,
    reference=reference.causal_conv,
    inputs=_inputs,
    cases=(
        *(
            Case(
                f"C{C}-{H}x{W}{'' if sums is None else f'-{sums}'}",
                {"T": T, "H": H, "W": W, "C": C, "sums": sums},
                real=True,
                compiled=HALVES,
            )
            for C, T, H, W in WIDTHS
            for sums in (None, "bias", "shortcut")
        ),
        Case("C96-9x17-shortcut", {"T": 2, "H": 9, "W": 17, "C": 96, "sums": "shortcut"}),
        Case("C96-B2-1x1", {"B": 2, "T": 1, "H": 1, "W": 1, "C": 96}),
        Case("C96-B2-T3-bias", {"B": 2, "T": 3, "H": 3, "W": 33, "C": 96, "sums": "bias"}),
        Case("C192-10x5-shortcut", {"T": 1, "H": 10, "W": 5, "C": 192, "sums": "shortcut"}),
        Case("C192-8x16", {"T": 1, "H": 8, "W": 16, "C": 192}),
    ),
    moved_bytes=_bytes,
    flops=_flops,
    chips=CHIPS,
)

OPS = (CAUSAL_CONV,)
