from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.launch import launch
from helios_kernels.tuning import config


@triton.jit(do_not_specialize=["H", "W"])
def renoise_kernel(
    x,  # [planes, H, W], contiguous
    noise,  # [planes, 2 H, 2 W], contiguous
    out,  # like noise, float32
    count,  # elements of out
    H, W, alpha, beta,
    BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    column, line = place % (2 * W), place // (2 * W)
    source = (line // (2 * H) * H + line % (2 * H) // 2) * W + column // 2
    coarse = tl.load(x + source, inside).to(tl.float32)
    fresh = tl.load(noise + place, inside).to(tl.float32)
    tl.store(out + place, alpha * coarse + beta * fresh, inside)


def renoise(x_BCTHW: Tensor, noise: Tensor, alpha: float, beta: float) -> Tensor:
    H, W = x_BCTHW.shape[-2:]
    assert noise.shape == (*x_BCTHW.shape[:-2], 2 * H, 2 * W)
    assert noise.numel() < 2**31
    out = torch.empty(noise.shape, dtype=torch.float32, device=noise.device)
    chosen = config("renoise")
    launch(
        renoise_kernel,
        (triton.cdiv(out.numel(), chosen.tile),),
        x_BCTHW.contiguous(), noise.contiguous(), out, out.numel(), H, W, alpha, beta,
        config=chosen, BLOCK=chosen.tile,
    )  # fmt: skip
    return out


@triton.jit
def dmd_step_kernel(
    x, flow, start_point,
    out,  # float32; all four contiguous, of `count` elements
    count, sigma,
    keep,  # 1 - sigma_next
    sigma_next,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    x0 = tl.load(x + place, inside).to(tl.float32) - sigma * tl.load(flow + place, inside).to(tl.float32)
    if not LAST:
        x0 = keep * x0 + sigma_next * tl.load(start_point + place, inside).to(tl.float32)
    tl.store(out + place, x0, inside)


def dmd_step(x: Tensor, flow: Tensor, start_point: Tensor, sigma: float, sigma_next: float) -> Tensor:
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
