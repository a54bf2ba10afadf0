from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.precision import wide

NORM_EPS = 1e-12


def vae_norm_silu(x_BTHWC: Tensor, gamma_C: Tensor, out_BTHWC: Tensor | None = None, *, silu: bool = True) -> Tensor:
    """Return a new tensor; `out` is part of the signature for the kernel's sake."""
    y = F.normalize(wide(x_BTHWC), dim=-1, eps=NORM_EPS) * (x_BTHWC.shape[-1] ** 0.5 * wide(gamma_C))
    return (F.silu(y) if silu else y).to(x_BTHWC.dtype)


def causal_pad(
    x_BTHWC: Tensor,
    past_BPHWC: Tensor | None,
    out_BTHWC: Tensor,
    gamma_C: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """Return a new tensor; only the length of `out` is read."""
    if past_BPHWC is None:
        B, T, H, W, C = x_BTHWC.shape
        past_BPHWC = x_BTHWC.new_zeros(B, out_BTHWC.shape[1] - T, H, W, C)
    x = x_BTHWC if gamma_C is None else vae_norm_silu(x_BTHWC, gamma_C, silu=silu)
    return torch.cat([past_BPHWC, x], dim=1)


def causal_sum_pad(
    x_BTHWC: Tensor,
    bias_C: Tensor,
    shortcut_BTHWC: Tensor | None,
    past_BPHWC: Tensor | None,
    out_BTHWC: Tensor,
    gamma_C: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the padded frames and the sum, both new tensors."""
    total = x_BTHWC + bias_C
    if shortcut_BTHWC is not None:
        total = total + shortcut_BTHWC
    return causal_pad(total, past_BPHWC, out_BTHWC, gamma_C, silu=True), total
