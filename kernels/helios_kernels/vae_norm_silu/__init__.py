"""The VAE's channel norm and SiLU, written straight into the causally padded input of the next convolution.

All three operations are one kernel. Activations are [B, T, H, W, C]; `out` and what comes before it in time are
contiguous within each batch item, so `out` may be a slice of the padded buffer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import Operation, wide

NORM_EPS = 1e-12


@Operation
def vae_norm_silu(x_BTHWC: Tensor, gamma_C: Tensor, out_BTHWC: Tensor, *, silu: bool = True) -> Tensor:
    """Write `silu(x / max(|x|, 1e-12) * sqrt(C) * gamma)` of every position to `out`, rounded once, and return it.

    x is copied where it is not contiguous within each batch item.
    """
    y = F.normalize(wide(x_BTHWC), dim=-1, eps=NORM_EPS) * (x_BTHWC.shape[-1] ** 0.5 * wide(gamma_C))
    return out_BTHWC.copy_(F.silu(y) if silu else y)


@Operation
def causal_pad(x_BTHWC: Tensor, past_BPHWC: Tensor | None, out_BTHWC: Tensor, gamma_C: Tensor) -> Tensor:
    """Fill `out`, [B, P + T, H, W, C], with the P remembered frames, or zeros if `past` is None, then `vae_norm_silu`
    of x; return it."""
    past = out_BTHWC.shape[1] - x_BTHWC.shape[1]
    out_BTHWC[:, :past] = 0 if past_BPHWC is None else past_BPHWC
    vae_norm_silu.twin(x_BTHWC, gamma_C, out_BTHWC[:, past:])
    return out_BTHWC


@Operation
def causal_sum_pad(
    x_BTHWC: Tensor,
    bias_C: Tensor,
    shortcut_BTHWC: Tensor | None,
    past_BPHWC: Tensor | None,
    out_BTHWC: Tensor,
    gamma_C: Tensor,
) -> Tensor:
    """Fill `out` as `causal_pad` does from `x + bias + shortcut`, rounded after each sum; return it.

    With a `shortcut` the sum replaces x. `x` and `shortcut` are contiguous within each batch item.
    """
    total = x_BTHWC + bias_C
    if shortcut_BTHWC is not None:
        total = x_BTHWC.copy_(total + shortcut_BTHWC)
    return causal_pad.twin(total, past_BPHWC, out_BTHWC, gamma_C)
