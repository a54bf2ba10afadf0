"""One attention: softmax(q k^T / sqrt(D) + bias) v, full and unmasked. The back end is chosen once, with its reason.

Shapes: B batch, Q query tokens, K key tokens, N heads, D head size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import helios_kernels as kernels
from helios_cli.model.ops import linear, onednn_runs

_QUERY_BLOCK = 256
"""Query rows at a time on a CPU: their scores against some thousand keys stay in the last-level cache."""


@dataclass(frozen=True)
class Backend:
    name: str
    reason: str


@functools.cache
def cpu_backend() -> Backend:
    """Back end for a CPU without gradients: blocked oneDNN products, or SDPA where the CPU has bfloat16 tiles."""
    if not torch.backends.mkldnn.is_available():
        return Backend("sdpa", "this PyTorch was built without oneDNN")
    if torch.cpu._is_amx_tile_supported():
        return Backend("sdpa", "the CPU has AMX tiles, which PyTorch's attention uses")
    return Backend("blocked", "oneDNN products by query block: about twice as fast as SDPA on a CPU without AMX")


def attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """Attention over all keys. `bias_K` is added to every query's logits. Returns [B, Q, N * D]."""
    if onednn_runs(q_BQND) and cpu_backend().name == "blocked":
        return _blocked(q_BQND, k_BKND, v_BKND, bias_K).flatten(2)
    if kernels.runs(q_BQND):
        return kernels.attention(q_BQND, k_BKND, v_BKND, bias_K).flatten(2)
    mask = None if bias_K is None else bias_K.to(q_BQND.dtype)[None, None, None]
    out = F.scaled_dot_product_attention(
        q_BQND.transpose(1, 2), k_BKND.transpose(1, 2), v_BKND.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2).flatten(2)


def _blocked(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None) -> Tensor:
    """Block by block of queries, so that no Q x K matrix is held. Logits and softmax are float32 in every dtype."""
    out = torch.empty_like(q_BQND)
    scale = q_BQND.shape[-1] ** -0.5
    for batch in range(q_BQND.shape[0]):
        for head in range(q_BQND.shape[2]):
            q, o = q_BQND[batch, :, head], out[batch, :, head]
            k = k_BKND[batch, :, head].float().contiguous()
            v_t = v_BKND[batch, :, head].T.contiguous()
            for start in range(0, q.shape[0], _QUERY_BLOCK):
                rows = slice(start, start + _QUERY_BLOCK)
                logits = linear(q[rows].float() * scale, k, bias_K)
                o[rows] = linear(torch.softmax(logits, dim=-1).to(v_t.dtype), v_t)
    return out
