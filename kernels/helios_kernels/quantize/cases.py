from __future__ import annotations

import torch
import torch.nn.functional as F

from helios_kernels.case import BF16, HIDDEN, STAGES, WIDTH, Case, Op, outliers
from helios_kernels.dispatch import FP8_CHIPS
from helios_kernels.quantize import LARGEST, SMALLEST, quantize


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    sizes = case.sizes
    gap = sizes.get("gap", 0)
    x = outliers(sizes["S"], sizes["E"] + gap, dtype=dtype, device=device)[:, gap:]
    if sizes.get("zero_row"):
        x[1] = 0
    if sizes.get("small"):  # the scale, which is float32, depends on the bend of the GELU here
        x = x * 0.03
    return {"x": x, "gelu": sizes.get("gelu", False)}


def unrounded(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (values, scales) without the rounding to fp8."""
    return y, y.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / LARGEST


def decoded(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return (values, scales, others) as numbers that compare."""
    values, scales, *others = results
    return values.double() * scales.double(), scales, *others


QUANTIZE = Op(
    run=quantize,
    exact=lambda x, gelu: unrounded(F.gelu(x, approximate="tanh") if gelu else x),
    decode=decoded,
    inputs=_inputs,
    cases=(
        Case("stage2-gelu", {"S": STAGES["stage2"], "E": HIDDEN, "gelu": True}, real=True, compiled=BF16),
        Case("stage2", {"S": STAGES["stage2"], "E": WIDTH}, real=True, compiled=BF16),
        Case("S2940-E96-gelu", {"S": STAGES["stage0"], "E": 96, "gelu": True}),
        Case("S65-E13824-gelu", {"S": 65, "E": HIDDEN, "gelu": True}),
        Case("S63-E96-zero-row", {"S": 63, "E": 96, "zero_row": True}),
        Case("S65-E5123-gap-gelu", {"S": 65, "E": 5123, "gap": 5, "gelu": True}),
        Case("S63-E96-gelu-small", {"S": 63, "E": 96, "gelu": True, "small": True}),
        Case("one-row", {"S": 1, "E": 64, "gelu": True}),
    ),
    chips=FP8_CHIPS,
)

OPS = (QUANTIZE,)
