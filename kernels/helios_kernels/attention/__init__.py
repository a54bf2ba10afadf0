"""Attention over all keys, forward, without a matrix of queries by keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import INTERPRETER, current_chip, runs

HEAD_SIZES = (16, 32, 64, 128)
"""What the kernels take; other sizes go to PyTorch."""

DTYPES = (torch.bfloat16, torch.float16)
"""What the kernels take. Float32 products on tensor cores spill at head size 128 (README), and PyTorch has those."""


def attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, of [B, Q, N, D] with [B, K, N, D]: returns [B, Q, N, D], contiguous.

    Any strides with contiguous D; Q and K of any length from 1, equal or not. `bias` is [K] float32, added to every
    query's logits; -inf leaves a key out.
    """
    if not takes(q_BQND):
        return pytorch_attention(q_BQND, k_BKND, v_BKND, bias_K)
    from helios_kernels.attention import kernel, kernel_tma

    if kernel_tma.takes(q_BQND, k_BKND, v_BKND):
        return kernel_tma.run(q_BQND, k_BKND, v_BKND, bias_K)
    return kernel.run(q_BQND, k_BKND, v_BKND, bias_K)


def takes(q_BQND: Tensor) -> bool:
    """Whether a kernel computes attention for such queries, or PyTorch."""
    if not runs(q_BQND) or q_BQND.shape[-1] not in HEAD_SIZES:
        return False
    return q_BQND.dtype in DTYPES or current_chip() == INTERPRETER


def pytorch_attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """PyTorch's own, the baseline of the bench: flash, cuDNN or memory-efficient as it chooses."""
    mask = None if bias_K is None else bias_K.to(q_BQND.dtype)[None, None, None]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BQND, k_BKND, v_BKND))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
