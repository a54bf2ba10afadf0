"""The VAE's channel norm and SiLU, written straight into the causally padded input of the next convolution."""

from __future__ import annotations

from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.vae_norm_silu import reference


def vae_norm_silu(x_BTHWC: Tensor, gamma_C: Tensor, out_BTHWC: Tensor, *, silu: bool = True) -> Tensor:
    """Write `silu(x / max(|x|, 1e-12) * sqrt(C) * gamma)` of every position to `out`, rounded once, and return it.

    `out` is contiguous within each batch item, so it may be a slice of the padded buffer; x is copied where it is not.
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
    """Fill `out`, [B, P + T, H, W, C], with the P remembered frames, or zeros if `past` is None, then x; return it.

    With `gamma`, x passes through `vae_norm_silu`. `past` and `out` are contiguous within each batch item.
    """
    if not runs(x_BTHWC, "causal_pad"):
        return out_BTHWC.copy_(reference.causal_pad(x_BTHWC, past_BPHWC, out_BTHWC, gamma_C, silu=silu))
    from helios_kernels.vae_norm_silu.kernel import run

    return run(x_BTHWC, past_BPHWC, gamma_C, out_BTHWC, silu=silu)


def causal_sum_pad(
    x_BTHWC: Tensor,
    bias_C: Tensor,
    shortcut_BTHWC: Tensor | None,
    past_BPHWC: Tensor | None,
    out_BTHWC: Tensor,
    gamma_C: Tensor,
) -> Tensor:
    """Fill `out` as `causal_pad` does, with SiLU, from `x + bias + shortcut`, rounded after each sum; return it.

    With a `shortcut` the sum replaces x. `x` and `shortcut` are contiguous within each batch item.
    """
    if not runs(x_BTHWC, "causal_sum_pad"):
        padded, total = reference.causal_sum_pad(x_BTHWC, bias_C, shortcut_BTHWC, past_BPHWC, out_BTHWC, gamma_C)
        if shortcut_BTHWC is not None:
            x_BTHWC.copy_(total)
        return out_BTHWC.copy_(padded)
    from helios_kernels.vae_norm_silu.kernel import run

    return run(x_BTHWC, past_BPHWC, gamma_C, out_BTHWC, silu=True, bias=bias_C, shortcut=shortcut_BTHWC)
