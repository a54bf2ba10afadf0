"""The VAE's channel norm and SiLU, written straight into the causally padded input of the convolution behind them."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.vae_norm_silu import reference


def vae_norm_silu(x_BTHWC: Tensor, gamma_C: Tensor, out_BTHWC: Tensor, *, silu: bool = True) -> Tensor:
    """`silu(x / max(|x|, 1e-12) * sqrt(C) * gamma)` of every position into `out`, in float32, rounded once.

    `out` is contiguous within each batch item, so it may be a slice of the padded buffer; where x is not, it is copied.
    Returns `out`.
    """
    if not runs(x_BTHWC, "vae_norm_silu"):
        return out_BTHWC.copy_(reference.vae_norm_silu(x_BTHWC, gamma_C, silu=silu))
    from helios_kernels.vae_norm_silu.kernel import run

    return run(x_BTHWC, None, gamma_C, out_BTHWC, silu=silu)


def causal_pad(
    x_BTHWC: Tensor,
    past_BPHWC: Tensor | None,
    out_BTHWC: Tensor,
    gamma_C: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor:
    """Fills all of `out`, [B, P + T, H, W, C]: first the P remembered frames, or zeros if `past` is None, then x.

    With `gamma` x passes `vae_norm_silu` on the way. `past` and `out` are contiguous within each batch item. Returns
    `out`.
    """
    if not runs(x_BTHWC, "causal_pad"):
        return out_BTHWC.copy_(reference.causal_pad(x_BTHWC, past_BPHWC, out_BTHWC, gamma_C, silu=silu))
    from helios_kernels.vae_norm_silu.kernel import run

    return run(x_BTHWC, past_BPHWC, gamma_C, out_BTHWC, silu=silu)
