from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.precision import wide

SMALLEST = 1e-12
"""In place of the largest magnitude of a row of zeros."""


def quantize(x: Tensor, *, gelu: bool = False, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    y = F.gelu(wide(x), approximate="tanh") if gelu else wide(x)
    largest = torch.finfo(dtype).max
    scale = y.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / largest
    return (y / scale).clamp(-largest, largest).to(dtype), scale
