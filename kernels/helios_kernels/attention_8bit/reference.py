from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from helios_kernels.precision import wide

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}

WEIGHT_BITS = 8
"""Weights, which are at most 1, are rounded to e4m3 after 2 to this power."""

_SMALLEST = 1e-12
_QUERIES = 1024
"""Queries at a time, so that no head's whole Q x K matrix is held."""


class Rounded(NamedTuple):
    """8-bit factors. `factors` belong to the logits to base 2 of each query: both scales, and log2(e) / sqrt(D)."""

    q_BQND: Tensor
    k_BKND: Tensor
    v_BNDK: Tensor
    factors_BNQ: Tensor
    v_scales_BND: Tensor


def rounded(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, kind: str) -> Rounded:
    """Round the factors. Values become columns, [B, N, D, K], as tensor cores take 8-bit ones."""
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    head, row, channel = (1, 3), (3,), (1,)
    k = wide(k_BKND)
    if kind == "int8":
        k = k - k.mean(1, keepdim=True)
    k8, k_scale = _round(k, dtype, head)
    del k
    q8, q_scale = _round(wide(q_BQND), dtype, row if kind == "int8" else head)
    v8, v_scale = _round(wide(v_BKND), torch.float8_e4m3fn, channel if kind == "int8" else head)
    B, Q, N, D = q_BQND.shape
    factors = (q_scale * k_scale * (math.log2(math.e) * D**-0.5)).expand(B, Q, N, 1)[..., 0].transpose(1, 2)
    v8 = v8.view(torch.uint8).permute(0, 2, 3, 1).contiguous().view(torch.float8_e4m3fn)
    return Rounded(q8, k8, v8, factors.contiguous(), v_scale.expand(B, 1, N, D)[:, 0].contiguous())


def _round(x: Tensor, dtype: torch.dtype, over: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return x in 8 bits, contiguous, and the scales: the largest magnitude `over` these axes becomes the type's."""
    scale = x.abs().amax(over, keepdim=True).clamp_min(_SMALLEST) / LARGEST[dtype]
    scaled = (x / scale).clamp(-LARGEST[dtype], LARGEST[dtype])
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype).contiguous(), scale


def attention_8bit(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, kind: str) -> Tensor:
    """Compute it head by head; products of 8-bit integers are exact in float32."""
    of, out = rounded(q_BQND, k_BKND, v_BKND, kind), torch.empty_like(q_BQND, memory_format=torch.contiguous_format)
    for batch in range(q_BQND.shape[0]):
        for head in range(q_BQND.shape[2]):
            k, v = of.k_BKND[batch, :, head].float().mT, of.v_BNDK[batch, head].float().mT
            for first in range(0, q_BQND.shape[1], _QUERIES):
                rows = slice(first, first + _QUERIES)
                logits = of.q_BQND[batch, rows, head].float() @ k * of.factors_BNQ[batch, head, rows, None]
                weights = torch.exp2(logits - logits.amax(-1, keepdim=True) + WEIGHT_BITS)
                total = weights.to(torch.float8_e4m3fn).float() @ v / weights.sum(-1, keepdim=True)
                out[batch, rows, head] = (total * of.v_scales_BND[batch, head]).to(out.dtype)
    return out
