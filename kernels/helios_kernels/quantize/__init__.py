"""Row-wise fp8 of an activation, optionally of its tanh-GELU: the input of the next fp8 product in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import Operation, wide

SMALLEST = 1e-12
"""In place of the largest magnitude of zeros."""

E4M3, LARGEST = torch.float8_e4m3fn, 448.0


@Operation
def quantize(x: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Return e4m3 values [..., E] and float32 scales [..., 1], with `values * scales` nearest to x or its tanh-GELU.

    A row's largest magnitude becomes 448. A row of zeros keeps zeros. Scales are laid out as `torch._scaled_mm` takes
    them.
    """
    y = F.gelu(wide(x), approximate="tanh") if gelu else wide(x)
    scale = y.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return (y / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale
