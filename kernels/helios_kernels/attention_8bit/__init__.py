"""Attention with 8-bit products: other results than attention's, by some tenths of a per cent or a few per cent.

- `int8`: keys less their mean over all keys, which no softmax notices, as int8 with one scale a head; queries as int8
  with a scale a row; values as e4m3 with a scale a channel.
- `e4m3`: queries, keys and values as e4m3 with one scale a head.

Weights are rounded to e4m3 as well, 256 times as large, so that small ones keep their bits. Sums are not in 8 bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from helios_kernels.dispatch import Operation
from helios_kernels.round_heads import HEAD_SIZES, round_heads

Kind = Literal["int8", "e4m3"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WEIGHT_BITS = 8
"""Weights, which are at most 1, are rounded to e4m3 after 2 to this power."""

_QUERIES = 1024
"""Queries at a time, so that no head's whole Q x K matrix is held."""


class Rounded(NamedTuple):
    """8-bit factors. `factors` belong to the logits to base 2 of each query: both scales, and log2(e) / sqrt(D)."""

    q_BQND: Tensor
    k_BKND: Tensor
    v_BNDK: Tensor
    factors_BNQ: Tensor
    v_scales_BND: Tensor


def rounded(
    q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, kind: str, by: Callable[..., tuple[Tensor, Tensor]] = round_heads
) -> Rounded:
    """Round the factors `by` the operation or by its twin. Values become columns, as tensor cores take 8-bit ones."""
    B, Q, N, D = q_BQND.shape
    e4m3, smooth = torch.float8_e4m3fn, kind == "int8"
    k8, k_scale = by(k_BKND, torch.int8 if smooth else e4m3, "head", centred=smooth)
    q8, q_scale = by(q_BQND, k8.dtype, "row" if smooth else "head")
    v8, v_scale = by(v_BKND, e4m3, "channel" if smooth else "head", columns=True)
    factors = (q_scale * k_scale * (math.log2(math.e) * D**-0.5)).expand(B, Q, N, 1)[..., 0].transpose(1, 2)
    return Rounded(q8, k8, v8, factors.contiguous(), v_scale[..., 0].expand(B, N, D).contiguous())


def _has_size(q_BQND: Tensor, *_: Any, **__: Any) -> bool:
    return q_BQND.shape[-1] in HEAD_SIZES


@functools.partial(Operation, takes=_has_size)
def attention_8bit(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, kind: Kind = "int8") -> Tensor:
    """Return about softmax(q k^T / sqrt(D)) v of [B, Q, N, D] with [B, K, N, D]: [B, Q, N, D], contiguous."""
    of = rounded(q_BQND, k_BKND, v_BKND, kind, round_heads.twin)
    out = torch.empty_like(q_BQND, memory_format=torch.contiguous_format)
    for batch in range(q_BQND.shape[0]):
        for head in range(q_BQND.shape[2]):
            k, v = of.k_BKND[batch, :, head].float().mT, of.v_BNDK[batch, head].float().mT
            for first in range(0, q_BQND.shape[1], _QUERIES):  # products of 8-bit integers are exact in float32
                rows = slice(first, first + _QUERIES)
                logits = of.q_BQND[batch, rows, head].float() @ k * of.factors_BNQ[batch, head, rows, None]
                weights = torch.exp2(logits - logits.amax(-1, keepdim=True) + WEIGHT_BITS)
                total = weights.to(torch.float8_e4m3fn).float() @ v / weights.sum(-1, keepdim=True)
                out[batch, rows, head] = (total * of.v_scales_BND[batch, head]).to(out.dtype)
    return out
