"""Row-wise fp8 of an activation, optionally of its tanh-GELU: the input of the next fp8 product in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.dispatch import runs
from helios_kernels.quantize import reference


def quantize(x: Tensor, *, gelu: bool = False, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """Return fp8 values [..., E] and float32 scales [..., 1], with `values * scales` nearest to x or its tanh-GELU.

    A row's largest magnitude becomes the largest number of `dtype`: `float8_e4m3fn` (448; Ada, Hopper, Blackwell) or
    `float8_e4m3fnuz` (240; CDNA 3). A row of zeros keeps zeros. Scales are laid out as `torch._scaled_mm` takes them.
    """
    if not runs(x, "quantize"):
        return reference.quantize(x, gelu=gelu, dtype=dtype)
    from helios_kernels.quantize.kernel import run

    return run(x, gelu, dtype)
