"""The twin: PyTorch's convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def causal_conv(
    x_BTHWC: Tensor, weight_NCTHW: Tensor, bias_N: Tensor | None = None, shortcut_BTHWN: Tensor | None = None
) -> Tensor:
    y_BTHWN = F.conv3d(x_BTHWC.movedim(-1, 1), weight_NCTHW, bias_N, padding=(0, 1, 1)).movedim(1, -1)
    return (y_BTHWN if shortcut_BTHWN is None else y_BTHWN + shortcut_BTHWN).contiguous()
