from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.precision import wide


def modulated_norm(x_BSE: Tensor, scale: Tensor, shift: Tensor, split: int, eps: float) -> Tensor:
    y = F.layer_norm(wide(x_BSE), x_BSE.shape[-1:], eps=eps)
    history = y[:, :split] * (1 + scale[:, :1]) + shift[:, :1]
    noisy = y[:, split:] * (1 + scale[:, 1:]) + shift[:, 1:]
    return torch.cat([history, noisy], dim=1).to(x_BSE.dtype)


def layer_norm(x_BSE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    return F.layer_norm(wide(x_BSE), x_BSE.shape[-1:], wide(weight_E), wide(bias_E), eps).to(x_BSE.dtype)
