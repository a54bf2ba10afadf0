from __future__ import annotations

from dataclasses import replace

import torch

from helios_kernels.case import BF16, Case, Op, outliers
from helios_kernels.vae_norm_silu import causal_pad, causal_sum_pad, vae_norm_silu

PAST = 2


def _frames(case: Case, frames: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    sizes = case.sizes
    shape = (sizes.get("B", 1), frames, sizes["H"], sizes["W"], sizes["C"])
    return outliers(*shape, dtype=dtype, device=device)


def _norm_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Draw a piece of a clip, and a padded buffer of which it fills the part after the remembered frames."""
    T = case.sizes["T"]
    x = _frames(case, T + 1, dtype, device)[:, 1:]
    if case.sizes.get("channels_first"):
        x = x.movedim(-1, 1).contiguous().movedim(1, -1)
    if case.sizes.get("zero_cell"):
        x[:, 0, 0, 0] = 0
    gamma = (1 + 0.2 * torch.randn(case.sizes["C"], device=device)).to(dtype)
    buffer = _frames(case, PAST + T, dtype, device)
    return {"x_BTHWC": x, "gamma_C": gamma, "out_BTHWC": buffer[:, PAST:], "silu": not case.sizes.get("no_silu")}


def _pad_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    sizes = case.sizes
    buffer = _frames(case, PAST + sizes["T"] + 1, dtype, device)
    return {
        "x_BTHWC": _frames(case, sizes["T"], dtype, device),
        "past_BPHWC": None if sizes.get("first") else _frames(case, PAST, dtype, device),
        "out_BTHWC": buffer[:, 1:],
        "gamma_C": (1 + 0.2 * torch.randn(sizes["C"], device=device)).to(dtype),
    }


def _sum_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Draw what a residual block adds, and what the norm behind it reads."""
    shortcut = _frames(case, case.sizes["T"], dtype, device) if case.sizes.get("shortcut") else None
    bias = torch.randn(case.sizes["C"], device=device).to(dtype)
    return {**_pad_inputs(case, dtype, device), "bias_C": bias, "shortcut_BTHWC": shortcut}


WIDTHS = ((384, 16, 96, 160), (192, 11, 192, 320), (96, 5, 384, 640))
"""Channels, frames, height and width: the decoder's at 640x384, some frames of each."""


def _real(**sizes: bool) -> tuple[Case, ...]:
    """Return a case of each width; the `first` frame of a clip comes alone, too short to be timed."""
    return tuple(
        Case(
            "-".join((f"C{C}-{H}x{W}", *sizes)),
            {"T": 1 if "first" in sizes else T, "H": H, "W": W, "C": C, **sizes},
            real="first" not in sizes,
            compiled=BF16,
        )
        for C, T, H, W in WIDTHS
    )


VAE_NORM_SILU = Op(
    run=vae_norm_silu,
    inputs=_norm_inputs,
    cases=(
        *(replace(case, compiled=()) for case in _real()),  # no film starts them
        # Before the decoder's attention.
        Case("C384-48x80-no-silu", {"T": 4, "H": 48, "W": 80, "C": 384, "no_silu": True}, real=True, compiled=BF16),
        Case("C96-T5-B2", {"B": 2, "T": 5, "H": 24, "W": 40, "C": 96}),
        Case("C384-no-silu", {"T": 1, "H": 13, "W": 7, "C": 384, "no_silu": True}),
        Case("C96-channels-first", {"T": 2, "H": 9, "W": 7, "C": 96, "channels_first": True}),
        Case("C5-zero-cell", {"T": 3, "H": 1, "W": 9, "C": 5, "zero_cell": True}),
    ),
    written=("out_BTHWC",),
    write_only=("out_BTHWC",),
)

CAUSAL_PAD = Op(
    run=causal_pad,
    inputs=_pad_inputs,
    cases=(
        *_real(),
        *_real(first=True),
        Case("C384-first", {"T": 1, "H": 24, "W": 40, "C": 384, "first": True}),
        Case("C96-B2", {"B": 2, "T": 4, "H": 12, "W": 20, "C": 96}),
        Case("C16-B2-first", {"B": 2, "T": 1, "H": 12, "W": 20, "C": 16, "first": True}),
        Case("C5-T1", {"T": 1, "H": 3, "W": 9, "C": 5}),
    ),
    written=("out_BTHWC",),
    write_only=("out_BTHWC",),
)

CAUSAL_SUM_PAD = Op(
    run=causal_sum_pad,
    inputs=_sum_inputs,
    cases=(
        *_real(shortcut=True),
        *_real(),
        *_real(first=True, shortcut=True),
        *_real(first=True),
        Case("C96-B2-shortcut", {"B": 2, "T": 4, "H": 12, "W": 20, "C": 96, "shortcut": True}),
        Case("C16-B2-first", {"B": 2, "T": 1, "H": 12, "W": 20, "C": 16, "first": True}),
        Case("C5-T1-first-shortcut", {"T": 1, "H": 3, "W": 9, "C": 5, "first": True, "shortcut": True}),
    ),
    written=("out_BTHWC", "x_BTHWC"),
    write_only=("out_BTHWC",),
    # Without a shortcut the sum is not kept.
    more_bytes=lambda x_BTHWC, shortcut_BTHWC, **_: -x_BTHWC.nbytes if shortcut_BTHWC is None else 0,
)

OPS = (VAE_NORM_SILU, CAUSAL_PAD, CAUSAL_SUM_PAD)
