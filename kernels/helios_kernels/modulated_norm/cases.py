from __future__ import annotations

import torch

from helios_kernels.case import BF16, DTYPES, HISTORY, STAGES, WIDTH, Case, Op, outliers, stages
from helios_kernels.modulated_norm import layer_norm, modulated_norm, reference

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


def _affine_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    weight, bias = torch.randn(2, case.sizes.get("E", WIDTH), device=device)
    return {"x_BSE": stream(case, dtype, device), "weight_E": weight, "bias_E": bias, "eps": EPS}


def stream_bytes(case: Case, itemsize: int) -> int:
    """Count [B, S, E] read once and written once."""
    return 2 * case.sizes.get("B", 1) * case.sizes["S"] * case.sizes.get("E", WIDTH) * itemsize


REAL = stages(DTYPES, split=HISTORY)
NARROW = Case("stage2-E1536", {"S": STAGES["stage2"], "split": HISTORY, "E": 1536}, compiled=BF16)
ROWS = (Case("S11040-E96", {"S": STAGES["stage2"], "split": HISTORY, "E": 96}),)
"""All rows of a film's stream, narrow enough for the interpreter."""

UGLY = (
    Case("S101-split40", {"S": 101, "split": 40}),
    Case("one-row-noisy", {"S": 1, "split": 0}),
    Case("one-row-history", {"S": 1, "split": 1, "E": 96}),
    Case("S63-E96-B2", {"B": 2, "S": 63, "split": 17, "E": 96}),
    Case("S65-E5123-gap", {"S": 65, "split": 20, "E": 5123, "gap": 5}),
    Case("S257-shared-B3", {"B": 3, "S": 257, "split": 100, "E": 320, "shared": True}),
    Case("no-history", {"S": 63, "split": 0, "E": 1024}),
)

MODULATED_NORM = Op(
    name="modulated_norm",
    run=modulated_norm,
    reference=reference.modulated_norm,
    inputs=_modulated_inputs,
    cases=(*REAL, NARROW, *ROWS, *UGLY),
    moved_bytes=stream_bytes,
)

LAYER_NORM = Op(
    name="layer_norm",
    run=layer_norm,
    reference=reference.layer_norm,
    inputs=_affine_inputs,
    cases=(
        Case("stage2-noisy", {"S": STAGES["stage2"] - HISTORY}, real=True),
        Case("S63-E96-B2", {"B": 2, "S": 63, "E": 96}),
        Case("S65-E5123-gap", {"S": 65, "E": 5123, "gap": 5}),
    ),
    moved_bytes=stream_bytes,
)

OPS = (MODULATED_NORM, LAYER_NORM)
