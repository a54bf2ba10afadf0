from __future__ import annotations

import torch

from helios_kernels.case import BF16, DTYPES, HEAD, HEADS, STAGES, Case, Op, outliers, stages
from helios_kernels.qk_norm_rope import qk_norm_rope


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Slice queries and keys of a fused product [B, S, 3 E], or with `alone` make one tensor [B, S, E]."""
    sizes = case.sizes
    B, S, heads, D = sizes.get("B", 1), sizes["S"], sizes.get("heads", HEADS), sizes.get("D", HEAD)
    E, W = heads * D, 1 if sizes.get("alone") else 2
    product = outliers(B, S, E if W == 1 else 3 * E, dtype=dtype, device=device)
    rope = None
    if not sizes.get("no_rope"):
        angle = torch.rand(S, D // 2, 1, device=device) * 100
        shrink = 0.3 + 0.7 * torch.rand(S, D // 2, 1, device=device)  # pooled rotations are shorter than 1
        rope = shrink * torch.cat([angle.cos(), angle.sin()], dim=-1)
    return {
        "x_BSWE": product[..., : W * E].unflatten(-1, (W, E)),
        "weight_WE": (1 + 0.3 * torch.randn(W, E, device=device)).to(dtype),
        "rope_SD2": rope,
        "heads": heads,
        "eps": 1e-6,
    }


QK_NORM_ROPE = Op(
    run=qk_norm_rope,
    inputs=_inputs,
    cases=(
        *stages(DTYPES),
        Case("stage2-cross-query", {"S": 8640, "alone": True, "no_rope": True}, real=True, compiled=DTYPES),
        Case("stage2-12x128", {"S": STAGES["stage2"], "heads": 12}, compiled=BF16),
        Case("S2940-3x32", {"S": STAGES["stage0"], "heads": 3, "D": 32}),
        Case("S101", {"S": 101}),
        Case("one-row", {"S": 1}),
        Case("S63-6x16-B2", {"B": 2, "S": 63, "heads": 6, "D": 16}),
        Case("S257-3x32", {"S": 257, "heads": 3, "D": 32}),
        Case("S257-5x64-alone", {"S": 257, "heads": 5, "D": 64, "alone": True}),
        Case("S63-41x128", {"S": 63, "heads": 41, "D": 128}),
        Case("S63-6x16-no-rope", {"S": 63, "heads": 6, "D": 16, "no_rope": True}),
    ),
    written=("x_BSWE",),
)

OPS = (QK_NORM_ROPE,)
