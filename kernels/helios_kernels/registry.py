"""All operations: what the tests, the ahead-of-time builds and the bench go through."""

from __future__ import annotations

from helios_kernels.attention.cases import ATTENTION, ATTENTION_POINTERS
from helios_kernels.case import Op
from helios_kernels.dmd_step.cases import DMD_STEP
from helios_kernels.gated_residual.cases import (
    GATED_RESIDUAL,
    GATED_RESIDUAL_LAYER_NORM,
    GATED_RESIDUAL_MODULATED_NORM,
)
from helios_kernels.modulated_norm.cases import LAYER_NORM, MODULATED_NORM
from helios_kernels.qk_norm_rope.cases import QK_NORM_ROPE
from helios_kernels.quantize.cases import QUANTIZE
from helios_kernels.renoise.cases import RENOISE
from helios_kernels.vae_norm_silu.cases import CAUSAL_PAD, VAE_NORM_SILU

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        MODULATED_NORM,
        LAYER_NORM,
        GATED_RESIDUAL,
        GATED_RESIDUAL_MODULATED_NORM,
        GATED_RESIDUAL_LAYER_NORM,
        QK_NORM_ROPE,
        ATTENTION,
        ATTENTION_POINTERS,
        QUANTIZE,
        RENOISE,
        DMD_STEP,
        VAE_NORM_SILU,
        CAUSAL_PAD,
    )
}
