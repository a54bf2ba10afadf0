"""Row-wise fp8 of an activation, optionally of its tanh-GELU: the input of the next fp8 product in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import Operation, wide

SMALLEST = 1e-12
"""In place of the largest magnitude of a row of zeros."""


@Operation
def quantize(x: Tensor, *, gelu: bool = False, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """Return fp8 values [..., E] and float32 scales [..., 1], with `values * scales` nearest to x or its tanh-GELU.

    A row's largest magnitude becomes the largest number of `dtype`: `float8_e4m3fn` (448; Ada, Hopper, Blackwell) or
    `float8_e4m3fnuz` (240; CDNA 3). A row of zeros keeps zeros. Scales are laid out as `torch._scaled_mm` takes them.
    """
    y = F.gelu(wide(x), approximate="tanh") if gelu else wide(x)
    largest = torch.finfo(dtype).max
    scale = y.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / largest
    return (y / scale).clamp(-largest, largest).to(dtype), scale
