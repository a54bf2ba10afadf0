"""Classifier-free guidance of the predicted flow."""

from __future__ import annotations

from torch import Tensor


def classifier_free(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Compute `uncond + scale * (cond - uncond)`, in float32."""
    cond, uncond = cond.float(), uncond.float()
    return uncond + scale * (cond - uncond)


def zero_star(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Compute CFG-Zero*: scale the unconditional flow to its best fit of the conditional one, `<c, u> / |u|^2`.

    Inputs are [B, ...]; the fit is one number a sample. (Fan et al. 2025, eq. 8)
    """
    cond, uncond = cond.float(), uncond.float()
    axes = tuple(range(1, cond.ndim))
    fit = (cond * uncond).sum(axes, keepdim=True) / (uncond.square().sum(axes, keepdim=True) + 1e-8)
    return classifier_free(cond, uncond * fit, scale)
