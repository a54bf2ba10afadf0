from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.precision import wide


def attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """Holds the Q x K matrix: for tests of few heads or short sequences."""
    q, k, v = wide(q_BQND), wide(k_BKND), wide(v_BKND)
    logits = torch.einsum("bqnd,bknd->bnqk", q, k) * q.shape[-1] ** -0.5
    if bias_K is not None:
        logits = logits + bias_K
    return torch.einsum("bnqk,bknd->bqnd", logits.softmax(-1), v).to(q_BQND.dtype)
