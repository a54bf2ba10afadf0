"""Helios' fused operations: Triton kernels, each with the plain PyTorch twin that it replaces and is tested against.

Importing this needs only PyTorch; a kernel's module, and with it Triton, is imported at its first call.
"""

from helios_kernels.attention import attention
from helios_kernels.attention_8bit import Kind, attention_8bit
from helios_kernels.causal_conv import causal_conv, causal_conv_norm
from helios_kernels.dispatch import Backend, backend, find_triton, is_untried, runs
from helios_kernels.modulation import (
    gated_residual,
    gated_residual_layer_norm,
    gated_residual_modulated_norm,
    gated_residual_modulated_norm_fp8,
    modulated_norm,
    modulated_norm_fp8,
)
from helios_kernels.qk_norm_rope import qk_norm_rope
from helios_kernels.quantize import quantize
from helios_kernels.round_heads import round_heads
from helios_kernels.sampler import dmd_step, renoise
from helios_kernels.vae_norm_silu import causal_pad, causal_sum_pad, vae_norm_silu

__all__ = [
    "Backend",
    "Kind",
    "attention",
    "attention_8bit",
    "backend",
    "causal_conv",
    "causal_conv_norm",
    "causal_pad",
    "causal_sum_pad",
    "dmd_step",
    "find_triton",
    "gated_residual",
    "gated_residual_layer_norm",
    "gated_residual_modulated_norm",
    "gated_residual_modulated_norm_fp8",
    "is_untried",
    "modulated_norm",
    "modulated_norm_fp8",
    "qk_norm_rope",
    "quantize",
    "renoise",
    "round_heads",
    "runs",
    "vae_norm_silu",
]
