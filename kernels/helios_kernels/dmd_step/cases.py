from __future__ import annotations

import math

import torch

from helios_kernels.case import BF16, Case, Op
from helios_kernels.dmd_step import dmd_step, reference


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """The network's flow is in `dtype`, the sample float32, as between steps."""
    x, flow, start = torch.randn(3, *case.sizes["shape"], device=device)
    last = case.sizes.get("last", False)
    return {
        "x": x,
        "flow": flow.to(dtype),
        "start_point": start,
        "sigma": 0.657436 if last else 0.999479,
        "sigma_next": 0.0 if last else 0.657436,
    }


def _bytes(case: Case, itemsize: int) -> int:
    tensors = 4 + itemsize + 4 + (0 if case.sizes.get("last") else 4)
    return math.prod(case.sizes["shape"]) * tensors


DMD_STEP = Op(
    name="dmd_step",
    run=dmd_step,
    reference=reference.dmd_step,
    inputs=_inputs,
    cases=(
        Case("stage2", {"shape": (1, 16, 9, 48, 80)}, real=True, compiled=BF16),
        Case("stage2-last", {"shape": (1, 16, 9, 48, 80), "last": True}, real=True, compiled=BF16),
        Case("odd", {"shape": (2, 3, 1, 7, 5)}),
        Case("odd-last", {"shape": (2, 3, 1, 7, 5), "last": True}),
    ),
    moved_bytes=_bytes,
)
