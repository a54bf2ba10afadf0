from __future__ import annotations

from math import prod

import torch

from helios_kernels.case import Case, Op
from helios_kernels.causal_conv import CHIPS, causal_conv, causal_conv_norm
from helios_kernels.dispatch import HALVES

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
        "bias_N": torch.randn(channels, device=device).to(dtype),
        "shortcut_BTHWN": shortcut if sizes.get("shortcut") else None,
    }


def _norm_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Draw the next convolution's padded buffer as well, of which the part after the remembered frames is written."""
    inputs = _inputs(case, dtype, device)
    B, frames, *frame = inputs["x_BTHWC"].shape
    buffer = torch.randn(B, frames, *frame, device=device).to(dtype)
    gamma = (1 + 0.2 * torch.randn(frame[-1], device=device)).to(dtype)
    return {**inputs, "gamma_N": gamma, "out_BTHWN": buffer[:, PAST:]}


def _flops(case: Case) -> int:
    positions = prod(case.sizes.get(name, 1) for name in ("B", "T", "H", "W"))
    return 2 * TAPS * positions * case.sizes["C"] ** 2


WIDTHS = ((192, 11, 192, 320), (96, 5, 384, 640))
"""Channels, frames, height and width: the decoder's finest levels at 640x384, some frames of each."""


REAL = tuple(
    Case(
        f"C{C}-{H}x{W}{'-shortcut' if shortcut else ''}",
        {"T": T, "H": H, "W": W, "C": C, "shortcut": shortcut},
        real=True,
        compiled=HALVES,
    )
    for C, T, H, W in WIDTHS
    for shortcut in (False, True)
)
UGLY = (
    Case("C96-9x17-shortcut", {"T": 2, "H": 9, "W": 17, "C": 96, "shortcut": True}),
    Case("C96-B2-T3", {"B": 2, "T": 3, "H": 3, "W": 9, "C": 96}),
    Case("C192-10x5-shortcut", {"T": 1, "H": 10, "W": 5, "C": 192, "shortcut": True}),
)

CAUSAL_CONV = Op(
    run=causal_conv,
    inputs=_inputs,
    cases=(
        *REAL,
        *UGLY,
        Case("C96-B2-1x1", {"B": 2, "T": 1, "H": 1, "W": 1, "C": 96}),
        Case("C192-8x16", {"T": 1, "H": 8, "W": 16, "C": 192}),
    ),
    flops=_flops,
    chips=CHIPS,
)

CAUSAL_CONV_NORM = Op(
    run=causal_conv_norm,
    inputs=_norm_inputs,
    cases=REAL + UGLY,
    flops=_flops,
    written=("out_BTHWN", "shortcut_BTHWN"),
    write_only=("out_BTHWN",),
    chips=CHIPS,
)

OPS = (CAUSAL_CONV, CAUSAL_CONV_NORM)
