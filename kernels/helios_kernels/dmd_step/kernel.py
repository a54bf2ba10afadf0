from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.configs import config
from helios_kernels.launch import launch


@triton.jit
def dmd_step_kernel(
    x,
    flow,
    start_point,
    out,  # float32; all four contiguous, of `count` elements
    count,
    sigma,
    keep,  # 1 - sigma_next
    sigma_next,
    LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x0 = tl.load(x + place, inside).to(tl.float32) - sigma * tl.load(flow + place, inside).to(tl.float32)
    if not LAST:
        x0 = keep * x0 + sigma_next * tl.load(start_point + place, inside).to(tl.float32)
    tl.store(out + place, x0, inside)


def run(x: Tensor, flow: Tensor, start_point: Tensor, sigma: float, sigma_next: float) -> Tensor:
    assert x.shape == flow.shape == start_point.shape
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    chosen = config("dmd_step")
    launch(
        dmd_step_kernel,
        (triton.cdiv(out.numel(), chosen.tile),),
        x.contiguous(), flow.contiguous(), start_point.contiguous(), out, out.numel(),
        sigma, 1 - sigma_next, sigma_next,
        config=chosen, LAST=sigma_next == 0, BLOCK=chosen.tile,
    )  # fmt: skip
    return out
