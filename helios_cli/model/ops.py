"""Products and element-wise chains of the networks, each with the arithmetic the checkpoints were trained with.

Shapes: B batch, S tokens, N heads, D head size, E width. Rows of the stream are history first, noisy tokens after;
`split` is the number of history rows. Norms and modulation are computed in float32 whatever the stream's dtype.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

import helios_kernels as kernels
from helios_cli.model import gradients


@functools.cache
def _onednn_dtypes() -> frozenset[torch.dtype]:
    """Return the types that oneDNN multiplies fast. With AVX-512 alone it takes bfloat16 apart for each product: three
    to five times as long as float32, and as widening both sides for one in float32."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    is_slow = torch.cpu._is_avx512_supported() and not torch.cpu._is_avx512_bf16_supported()
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported() and not is_slow
    return frozenset({torch.float32, torch.bfloat16} if bf16 else {torch.float32})


WIDER: dict[tuple[str, str, torch.dtype], torch.dtype] = {}
"""By kind of device, operation and type: the type to compute in instead, where the operation was found to be wrong
(`model.products`)."""


def right_dtype(device: torch.device, operation: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type in which `operation` is right on `device`: `dtype` unless that was found wrong."""
    return WIDER.get((device.type, operation, dtype), dtype)


def product_dtype(x: Tensor, operation: str) -> torch.dtype:
    """Return the type to compute `operation`, a product or convolution of `x`, in before rounding to the type of `x`.

    That is the type of `x`; float32 on a CPU that multiplies no smaller types fast (PyTorch's plain loops for them are
    15 to 70 times slower than float32); or a wider type where these were found wrong.
    """
    is_slow = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and x.dtype not in _onednn_dtypes()
    return right_dtype(x.device, operation, torch.float32 if is_slow else x.dtype)


def onednn_runs(x: Tensor) -> bool:
    """Return whether `x` is on the CPU, needs no gradient, and is of a type that oneDNN multiplies there."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and x.dtype in _onednn_dtypes()


def gelu_is_fused(x: Tensor) -> bool:
    """Return whether the tanh-GELU of a product of `x` is part of it: on CUDA, where no gradient is recorded."""
    return x.is_cuda and not torch.is_grad_enabled() and has_tanh_epilogue(x.device, x.dtype)


@functools.cache
def has_tanh_epilogue(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the GELU in PyTorch's products is the tanh-GELU there. The function is private, so it is probed.

    At -3 the tanh-GELU and the exact one are 10 % apart. On a CPU it is the exact one. On capability 12 the answer is
    no: products with such an epilogue are slower there than two passes.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 12:
        return False
    x = torch.full((16, 16), -3.0, device=device, dtype=dtype)
    one, none = torch.eye(16, device=device, dtype=dtype), torch.zeros(16, device=device, dtype=dtype)
    try:
        found = torch._addmm_activation(none, x, one, use_gelu=True)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(found, F.gelu(x, approximate="tanh"), rtol=2e-2, atol=0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """Compute `x @ weight.T + bias`, followed by the tanh-GELU with `gelu`.

    Weights are taken in the type of `x`. On a CPU the product goes to oneDNN, which `F.linear` leaves to MKL in
    float32: 43 against 100 ms for 4416x1024x1024 on one core of an AMD EPYC, where MKL does not use AVX-512. On CUDA
    the GELU is part of the product, so its rows are not written and read once more.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    wide = product_dtype(x, "linear")
    if wide != x.dtype:
        return linear(x.to(wide), weight, bias, gelu=gelu).to(x.dtype)
    if onednn_runs(x):
        activation = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation[0], [], activation[1])
    if gelu and bias is not None and gelu_is_fused(x):
        return torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True).unflatten(0, x.shape[:-1])
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Compute `a @ b` of activations."""
    wide = product_dtype(a, "matmul")
    return (a.to(wide) @ b.to(wide)).to(a.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Apply LayerNorm over the last axis in float32; returns float32."""
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)


def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    """Compute `norm(x) * (1 + scale) + shift`, rows before `split` by `scale[:, 0]`, the others by `scale[:, 1]`.

    `scale` and `shift` are [B or 1, 2, E] float32. Returns the dtype of `x`.
    """
    if kernels.runs(x_BSE, "modulated_norm"):
        return kernels.modulated_norm(x_BSE, scale, shift, split, eps)
    if torch.is_grad_enabled():
        return gradients.modulated_norm(x_BSE, scale, shift, split, eps)
    y = layer_norm(x_BSE, None, None, eps)
    parts = [
        torch.addcmul(shift[:, row, None], rows, 1 + scale[:, row, None])
        for row, rows in ((0, y[:, :split]), (1, y[:, split:]))
        if rows.shape[1]
    ]
    return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]).to(x_BSE.dtype)


def gated_residual(x_BSE: Tensor, y_BSE: Tensor, gate: Tensor, split: int) -> Tensor:
    """Compute `x + y * gate` in float32, rounded once; rows before `split` by `gate[:, 0]`, the others by `gate[:, 1]`.

    `gate` is [B or 1, 2, E] float32. Writes into `x` where no gradient is recorded. Returns the sum.
    """
    if kernels.runs(x_BSE, "gated_residual"):
        return kernels.gated_residual(x_BSE, y_BSE, gate, split)
    if torch.is_grad_enabled():
        return gradients.gated_residual(x_BSE, y_BSE, gate, split)
    spans = gradients.spans(x_BSE, split)
    sums = [torch.addcmul(x_BSE[:, s].float(), y_BSE[:, s].float(), gate[:, row, None]) for row, s in spans]
    for (_, span), total in zip(spans, sums, strict=True):
        x_BSE[:, span] = total
    return x_BSE


def rms_norm_rope(x_BSE: Tensor, weight: Tensor, rope_SD2: Tensor | None, heads: int, eps: float) -> Tensor:
    """Apply RMSNorm over all heads together, then the rotation of (even, odd) channel pairs. Returns [B, S, N, D].

    `rope_SD2` is [S, D/2, 2] float32 (cos, sin), or in PyTorch alone one a sample; None leaves the rotation out. The
    pair (a, b) turns into (a cos - b sin, a sin + b cos), a complex product that also holds where pooling left
    |cos + i sin| < 1. A kernel writes into `x`, which is a product that nothing else reads.
    """
    if kernels.runs(x_BSE, "qk_norm_rope"):
        y = kernels.qk_norm_rope(x_BSE[:, :, None], weight[None], rope_SD2, heads, eps)
        return y[:, :, 0].unflatten(-1, (heads, -1))
    if torch.is_grad_enabled():
        return gradients.rms_norm_rope(x_BSE, weight, rope_SD2, heads, eps)
    y = x_BSE.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()
    y = y.unflatten(-1, (heads, -1))
    if rope_SD2 is not None:
        turned = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * torch.view_as_complex(
            rope_SD2
        ).unsqueeze(-2)
        y = torch.view_as_real(turned).flatten(-2)
    return y.to(x_BSE.dtype)


def gated_residual_layer_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute `gated_residual`, then the affine norm of the noisy rows. Returns (sum, norm) in the dtype of `x`."""
    if kernels.runs(x_BSE, "gated_residual_layer_norm"):
        return x_BSE, kernels.gated_residual_layer_norm(x_BSE, y_BSE, gate, weight, bias, split, eps)
    if torch.is_grad_enabled():
        return gradients.gated_residual_layer_norm(x_BSE, y_BSE, gate, weight, bias, split, eps)
    x_BSE = gated_residual(x_BSE, y_BSE, gate, split)
    return x_BSE, layer_norm(x_BSE[:, split:], weight, bias, eps).to(x_BSE.dtype)


def gated_residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute `gated_residual`, then `modulated_norm` of all rows. Returns (sum, norm)."""
    if kernels.runs(x_BSE, "gated_residual_modulated_norm"):
        return x_BSE, kernels.gated_residual_modulated_norm(x_BSE, y_BSE, gate, scale, shift, split, eps)
    x_BSE = gated_residual(x_BSE, y_BSE, gate, split)
    return x_BSE, modulated_norm(x_BSE, scale, shift, split, eps)


def residual_modulated_norm(
    x_BSE: Tensor, y_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Add `y`, [B, S - split, E], to the noisy rows, then `modulated_norm` of all. Returns (sum, norm)."""
    if kernels.runs(x_BSE, "gated_residual_modulated_norm"):
        return x_BSE, kernels.gated_residual_modulated_norm(x_BSE, y_BSE, None, scale, shift, split, eps)
    if torch.is_grad_enabled():
        return gradients.residual_modulated_norm(x_BSE, y_BSE, scale, shift, split, eps)
    x_BSE[:, split:] += y_BSE  # the history rows stay where they are
    return x_BSE, modulated_norm(x_BSE, scale, shift, split, eps)


def side_by_side(*weights: Tensor) -> Tensor | None:
    """Return one tensor over `weights` if they follow each other in one piece of memory, else None.

    So a fused product needs no parameter of its own: the checkpoint's names stay, and weights that were moved apart
    are multiplied one by one.
    """
    first, place = weights[0], weights[0].storage_offset()
    for weight in weights:
        together = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not together or not weight.is_contiguous() or weight.storage_offset() != place:
            return None
        place += weight.numel()
    rows = sum(len(weight) for weight in weights)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
