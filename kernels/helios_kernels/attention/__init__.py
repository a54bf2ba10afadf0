"""Attention over all keys, forward, without a matrix of queries by keys."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import INTERPRETER, Operation, is_half

HEAD_SIZES = (16, 32, 64, 128)
"""Head sizes of the kernels; other sizes go to PyTorch."""

TMA_CHIPS = ("sm_90", "sm_100", INTERPRETER)
"""Chips with descriptors in hardware. Elsewhere Triton rewrites them to pointers, worse than the pointer kernel."""


def takes(q_BQND: Tensor, *_: Any, **__: Any) -> bool:
    """Return whether there is a kernel for such queries. Float32 products on tensor cores spill at head size 128
    (README), and PyTorch has those."""
    return is_half(q_BQND) and q_BQND.shape[-1] in HEAD_SIZES


@functools.partial(Operation, takes=takes)
def attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D) + bias) v of [B, Q, N, D] with [B, K, N, D]: [B, Q, N, D], contiguous.

    Inputs have any strides, Q and K any length from 1. `bias` is [K] float32, added to every query's logits; -inf
    leaves a key out. PyTorch chooses between flash, cuDNN and memory-efficient attention.
    """
    mask = None if bias_K is None else bias_K.to(q_BQND.dtype)[None, None, None]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q_BQND, k_BKND, v_BKND))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def aligned(x_BSND: Tensor) -> Tensor:
    """Return x if every row starts at a multiple of 16 bytes, as slices of a fused product do, else a copy of it.

    TMA cannot address other rows, and through pointers they would be loaded element by element.
    """
    strides = [stride * x_BSND.element_size() % 16 for stride in x_BSND.stride()[:3]]
    whole = x_BSND.stride(-1) == 1 and x_BSND.data_ptr() % 16 == 0 and not any(strides)
    return x_BSND if whole else x_BSND.clone(memory_format=torch.contiguous_format)
