from __future__ import annotations

from typing import Any

import torch

from helios_kernels.case import BF16, DTYPES, HISTORY, STAGES, WIDTH, Case, Op, outliers, stages
from helios_kernels.dispatch import FP8_CHIPS
from helios_kernels.modulation import (
    gated_residual,
    gated_residual_layer_norm,
    gated_residual_modulated_norm,
    gated_residual_modulated_norm_fp8,
    modulated_norm,
    modulated_norm_fp8,
)
from helios_kernels.quantize.cases import decoded, unrounded

EPS = 1e-6


def stream(case: Case, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Draw [B, S, E], its rows `gap` elements apart."""
    B, S, E, gap = (case.sizes.get(name, default) for name, default in (("B", 1), ("S", 1), ("E", WIDTH), ("gap", 0)))
    return outliers(B, S, E + gap, dtype=dtype, device=device)[..., gap:]


def modulation(case: Case, device: torch.device) -> torch.Tensor:
    """Draw [B or 1, 6, 2, E]: the rows of one block, as strided as the model's own."""
    sizes = case.sizes
    batch = 1 if sizes.get("shared") else sizes.get("B", 1)
    return torch.randn(batch, 2, 6, sizes.get("E", WIDTH), device=device).transpose(1, 2)


def _modulated_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    shift, scale, *_ = modulation(case, device).unbind(1)
    x = stream(case, dtype, device)
    return {"x_BSE": x, "scale": scale, "shift": shift, "split": case.sizes["split"], "eps": EPS}


REAL = stages(DTYPES, split=HISTORY)
NARROW = Case("stage2-E1536", {"S": STAGES["stage2"], "split": HISTORY, "E": 1536}, compiled=BF16)
ROWS = (Case("S2940-E96", {"S": STAGES["stage0"], "split": HISTORY, "E": 96}),)
"""All rows of a film's first stage, narrow enough for the interpreter."""

UGLY = (
    Case("S101-split40", {"S": 101, "split": 40}),
    Case("one-row-noisy", {"S": 1, "split": 0}),
    Case("one-row-history", {"S": 1, "split": 1, "E": 96}),
    Case("S63-E96-B2", {"B": 2, "S": 63, "split": 17, "E": 96}),
    Case("S65-E5123-gap", {"S": 65, "split": 20, "E": 5123, "gap": 5}),
)
NORMS = (
    *UGLY,
    Case("S257-shared-B3", {"B": 3, "S": 257, "split": 100, "E": 320, "shared": True}),
    Case("no-history", {"S": 63, "split": 0, "E": 1024}),
)

MODULATED_NORM = Op(
    run=modulated_norm,
    inputs=_modulated_inputs,
    cases=(*REAL, NARROW, *ROWS, *NORMS),
)

# `noisy`: y has only the noisy rows, as the result of cross-attention. `plain`: no gate.
CROSS_SIZES = {"S": STAGES["stage2"], "split": HISTORY, "noisy": True, "plain": True}
CROSS = Case("stage2-cross", CROSS_SIZES, real=True, compiled=BF16)
RESIDUAL = (
    *UGLY,
    Case("S63-E96-B2-cross", {"B": 2, "S": 63, "split": 17, "E": 96, "noisy": True, "plain": True}),
    Case("S257-shared-B3-noisy", {"B": 3, "S": 257, "split": 100, "E": 320, "shared": True, "noisy": True}),
)


def _residual_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    sizes, x = case.sizes, stream(case, dtype, device)
    rows = sizes["S"] - (sizes["split"] if sizes.get("noisy") else 0)
    y = outliers(x.shape[0], rows, x.shape[2], dtype=dtype, device=device)
    gate = None if sizes.get("plain") else modulation(case, device)[:, 2]
    return {"x_BSE": x, "y_BSE": y, "gate": gate, "split": sizes["split"]}


def _residual_modulated_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    shift, scale, *_ = modulation(case, device).unbind(1)
    return {**_residual_inputs(case, dtype, device), "scale": scale, "shift": shift, "eps": EPS}


def _residual_affine_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    weight, bias = torch.randn(2, case.sizes.get("E", WIDTH), device=device)
    return {**_residual_inputs(case, dtype, device), "weight_E": weight, "bias_E": bias, "eps": EPS}


def _unwritten_bytes(x_BSE: torch.Tensor, y_BSE: torch.Tensor, **_: Any) -> int:
    """Count the rows of history where y has none, which stay as they are."""
    return y_BSE.nbytes - x_BSE.nbytes


def _untouched_bytes(**inputs: Any) -> int:
    """Count those rows twice, where no norm reads them."""
    return 2 * _unwritten_bytes(**inputs)


GATED_RESIDUAL = Op(
    run=gated_residual,
    inputs=_residual_inputs,
    cases=REAL + ROWS + RESIDUAL,
    more_bytes=_untouched_bytes,
    written=("x_BSE",),
)

GATED_RESIDUAL_MODULATED_NORM = Op(
    run=gated_residual_modulated_norm,
    inputs=_residual_modulated_inputs,
    cases=(*REAL, CROSS, NARROW, *ROWS, *RESIDUAL),
    more_bytes=_unwritten_bytes,
    written=("x_BSE",),
)

GATED_RESIDUAL_LAYER_NORM = Op(
    run=gated_residual_layer_norm,
    inputs=_residual_affine_inputs,
    cases=REAL + ROWS + RESIDUAL,
    more_bytes=_untouched_bytes,
    written=("x_BSE",),
)

MODULATED_NORM_FP8 = Op(
    run=modulated_norm_fp8,
    exact=lambda **inputs: unrounded(modulated_norm.twin(**inputs)),
    decode=decoded,
    inputs=_modulated_inputs,
    cases=(*stages(BF16, split=HISTORY), NARROW, *ROWS, *NORMS),
    chips=FP8_CHIPS,
)

GATED_RESIDUAL_MODULATED_NORM_FP8 = Op(
    run=gated_residual_modulated_norm_fp8,
    exact=lambda **inputs: unrounded(gated_residual_modulated_norm.twin(**inputs)),
    decode=decoded,
    inputs=_residual_modulated_inputs,
    cases=(*stages(BF16, split=HISTORY), CROSS, NARROW, *ROWS, *RESIDUAL),
    more_bytes=_unwritten_bytes,
    written=("x_BSE",),
    chips=FP8_CHIPS,
)

OPS = (
    MODULATED_NORM,
    MODULATED_NORM_FP8,
    GATED_RESIDUAL,
    GATED_RESIDUAL_MODULATED_NORM,
    GATED_RESIDUAL_MODULATED_NORM_FP8,
    GATED_RESIDUAL_LAYER_NORM,
)
