"""Attention with 8-bit products: other results than attention's, by some tenths of a per cent or a few per cent.

- `int8`: keys less their mean over all keys, which no softmax notices, as int8 with one scale a head; queries as int8
  with a scale a row; values as e4m3 with a scale a channel.
- `e4m3`: queries, keys and values as e4m3 with one scale a head.

Weights are rounded to e4m3 as well, 256 times as large, so that small ones keep their bits. Sums are not in 8 bits.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from helios_kernels.attention_8bit import reference
from helios_kernels.dispatch import runs

Kind = Literal["int8", "e4m3"]
KINDS: tuple[Kind, ...] = get_args(Kind)

HEAD_SIZES = (32, 64, 128)


def attention_8bit(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, kind: Kind = "int8") -> Tensor:
    """Return about softmax(q k^T / sqrt(D)) v of [B, Q, N, D] with [B, K, N, D]: [B, Q, N, D], contiguous."""
    if not runs(q_BQND, "attention_8bit") or q_BQND.shape[-1] not in HEAD_SIZES:
        return reference.attention_8bit(q_BQND, k_BKND, v_BKND, kind)
    from helios_kernels.attention_8bit.kernel import run

    return run(reference.rounded(q_BQND, k_BKND, v_BKND, kind), q_BQND.dtype)
