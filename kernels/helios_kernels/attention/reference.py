from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.precision import wide


def attention(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """Compute attention with a head's whole Q x K matrix in memory."""
    heads = []
    for q, k, v in zip(*(wide(tensor).unbind(2) for tensor in (q_BQND, k_BKND, v_BKND)), strict=True):
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if bias_K is not None:
            logits = logits + bias_K
        heads.append(logits.softmax(-1) @ v)
    return torch.stack(heads, dim=2).to(q_BQND.dtype)
