from __future__ import annotations

import torch

from helios_kernels.case import BF16, Case, Op
from helios_kernels.sampler import dmd_step, renoise


def _renoise_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    H, W = case.sizes["H"], case.sizes["W"]
    planes = (1, case.sizes.get("C", 16), case.sizes.get("T", 9))
    x = torch.randn(*planes, W, H, device=device).mT  # not contiguous
    x = x.contiguous() if case.real else x.to(dtype)  # a film's latents are float32
    return {"x_BCTHW": x, "noise": torch.randn(*planes, 2 * H, 2 * W, device=device), "alpha": 0.6, "beta": 0.6926}


RENOISE = Op(
    run=renoise,
    inputs=_renoise_inputs,
    cases=(
        Case("into-stage1", {"H": 12, "W": 20}, real=True, small=True),
        Case("into-stage2", {"H": 24, "W": 40}, real=True, compiled=BF16, small=True),
        Case("odd", {"C": 3, "T": 1, "H": 7, "W": 5}),
        Case("one-cell", {"C": 1, "T": 1, "H": 1, "W": 1}),
    ),
)


def _step_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Draw the network's flow in `dtype` and the sample in float32, as between steps."""
    x, flow, start = torch.randn(3, *case.sizes["shape"], device=device)
    sigmas = (0.657436, 0.0) if case.sizes.get("last") else (0.999479, 0.657436)
    return {"x": x, "flow": flow.to(dtype), "start_point": start, "sigma": sigmas[0], "sigma_next": sigmas[1]}


DMD_STEP = Op(
    run=dmd_step,
    inputs=_step_inputs,
    cases=(
        Case("stage2", {"shape": (1, 16, 9, 48, 80)}, real=True, compiled=BF16, small=True),
        Case("stage2-last", {"shape": (1, 16, 9, 48, 80), "last": True}, real=True, compiled=BF16, small=True),
        Case("odd", {"shape": (2, 3, 1, 7, 5)}),
        Case("odd-last", {"shape": (2, 3, 1, 7, 5), "last": True}),
    ),
    more_bytes=lambda start_point, sigma_next, **_: 0 if sigma_next else -start_point.nbytes,
)

OPS = (RENOISE, DMD_STEP)
