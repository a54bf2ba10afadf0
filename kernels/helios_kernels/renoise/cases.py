from __future__ import annotations

import torch

from helios_kernels.case import BF16, Case, Op
from helios_kernels.renoise import reference, renoise


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    H, W = case.sizes["H"], case.sizes["W"]
    planes = (1, case.sizes.get("C", 16), case.sizes.get("T", 9))
    x = torch.randn(*planes, W, H, device=device).mT  # not contiguous
    x = x.contiguous() if case.real else x.to(dtype)  # a film's latents are float32
    return {"x_BCTHW": x, "noise": torch.randn(*planes, 2 * H, 2 * W, device=device), "alpha": 0.6, "beta": 0.6926}


def _bytes(case: Case, itemsize: int) -> int:
    coarse = case.sizes.get("C", 16) * case.sizes.get("T", 9) * case.sizes["H"] * case.sizes["W"]
    return coarse * (4 + 2 * 4 * 4)


RENOISE = Op(
    name="renoise",
    run=renoise,
    reference=reference.renoise,
    inputs=_inputs,
    cases=(
        Case("into-stage1", {"H": 12, "W": 20}, real=True),
        Case("into-stage2", {"H": 24, "W": 40}, real=True, compiled=BF16),
        Case("odd", {"C": 3, "T": 1, "H": 7, "W": 5}),
        Case("one-cell", {"C": 1, "T": 1, "H": 1, "W": 1}),
    ),
    moved_bytes=_bytes,
)
