"""The launcher of both attention kernels."""

from __future__ import annotations

import functools
import math

import torch
import triton
from torch import Tensor

from helios_kernels.attention import HEAD_SIZES, TMA_CHIPS, aligned, takes
from helios_kernels.attention.kernel_pointers import attention_kernel
from helios_kernels.attention.kernel_tma import attention_tma_kernel
from helios_kernels.dispatch import INTERPRETER, current_chip
from helios_kernels.launch import descriptor_memory, launch
from helios_kernels.tuning import attention_config


def attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """Run this chip's kernel. ValueError for tensors that it does not take."""
    if not takes(q_BQND):
        raise ValueError(f"the kernel takes heads of {', '.join(map(str, HEAD_SIZES))} in bfloat16 and float16")
    return run(q_BQND, k_BKND, v_BKND, bias_K, tma=current_chip() in TMA_CHIPS)


def run(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None, *, tma: bool) -> Tensor:
    q, k, v = aligned(q_BQND), aligned(k_BKND), aligned(v_BKND)
    (B, Q, N, D), K = q.shape, k.shape[1]
    assert K > 0
    out = torch.empty((B, Q, N, D), dtype=q.dtype, device=q.device)
    chosen = attention_config(D, bias=bias_K is not None)
    blocks = triton.cdiv(Q, chosen.block_q)
    arguments = (
        q, k, v, q if bias_K is None else bias_K, out, N, Q, K, math.log2(math.e) * D**-0.5,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
    )  # fmt: skip
    constants = {"HAS_BIAS": bias_K is not None, "WIDE": current_chip() == INTERPRETER, "D": D}
    constants |= {"BLOCK_Q": chosen.block_q, "BLOCK_K": chosen.block_k}
    if tma:
        tiles = blocks * N * B
        triton.set_allocator(descriptor_memory(q.device))
        programs, more = min(tiles, _multiprocessors(q.device) * chosen.programs), {"SPECIALIZE": chosen.specialize}
        launch(attention_tma_kernel, (programs,), *arguments, B, tiles, config=chosen, **constants, **more)
    else:
        launch(attention_kernel, (blocks, B * N), *arguments, config=chosen, **constants)
    return out


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Return how many persistent programs run at a time; without a GPU two, so that one takes a second tile."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
