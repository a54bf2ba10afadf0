from __future__ import annotations

import torch

from helios_kernels.case import BF16, HEAD, HEADS, STAGES, Case, Op
from helios_kernels.dispatch import FP8_CHIPS
from helios_kernels.round_heads import AXES, LARGEST, channel_extremes, round_heads


def _heads(case: Case, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Slice [B, S, N, D] of a fused product, its channels off centre."""
    B, S, N, D = (case.sizes.get(name, default) for name, default in zip("BSND", (1, 1, HEADS, HEAD), strict=True))
    product = torch.randn(B, S, 3 * N * D, device=device)
    product[..., ::16] += 3
    return product.to(dtype).unflatten(-1, (3, N, D))[:, :, 1]


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    how = {"over": "head", "centred": False, "columns": False, **case.sizes.get("how", {})}
    kind = torch.float8_e4m3fn if case.sizes.get("e4m3") else torch.int8
    return {"x_BSND": _heads(case, dtype, device), "dtype": kind, **how}


def _unrounded(x_BSND, dtype, over, centred, columns) -> tuple[torch.Tensor, ...]:
    """Return what values times scales are nearest to, and the scales."""
    x = x_BSND - x_BSND.mean(1, keepdim=True) if centred else x_BSND
    scales = x.abs().amax(AXES[over], keepdim=True) / LARGEST[dtype]
    return tuple(one.movedim(1, -1) if columns else one for one in (x, scales))


QUERIES, KEYS = {"over": "row"}, {"over": "head", "centred": True}
VALUES = {"over": "channel", "columns": True}
FACTORS = (
    ("queries-int8", {"how": QUERIES}),
    ("keys-int8", {"how": KEYS}),
    ("values-int8", {"how": VALUES, "e4m3": True}),
    ("keys-e4m3", {"how": {"over": "head"}, "e4m3": True}),  # and queries
    ("values-e4m3", {"how": {"over": "head", "columns": True}, "e4m3": True}),
)
"""The factors of both kinds of attention."""

REAL = {"stage2": {"S": STAGES["stage2"]}, "head64": {"S": 4096, "N": 16, "D": 64}}

ROUND_HEADS = Op(
    run=round_heads,
    inputs=_inputs,
    exact=_unrounded,
    decode=lambda results: (results[0].double() * results[1].double(), results[1]),
    cases=(
        *(
            Case(f"{shape}-{name}", {**sizes, **how}, real=True, compiled=BF16)
            for shape, sizes in REAL.items()
            for name, how in FACTORS
        ),
        *(Case(f"S101-{name}", {"S": 101, "N": 2, **how}) for name, how in FACTORS),
        *(Case(f"S67-D32-B2-{name}", {"B": 2, "S": 67, "N": 3, "D": 32, **how}) for name, how in FACTORS),
        Case("one-row", {"S": 1, "N": 2, "how": KEYS}),
    ),
    # Extremes are needed first.
    more_bytes=lambda x_BSND, over, **_: 0 if over == "row" else x_BSND.nbytes,
    chips=FP8_CHIPS,
)

CHANNEL_EXTREMES = Op(
    run=channel_extremes,
    inputs=lambda case, dtype, device: {"x_BSND": _heads(case, dtype, device)},
    cases=(
        *(Case(shape, sizes, real=True, compiled=BF16) for shape, sizes in REAL.items()),
        Case("S101", {"S": 101, "N": 2}),
        Case("S3000-D32-B2", {"B": 2, "S": 3000, "N": 3, "D": 32}),
    ),
    chips=FP8_CHIPS,
)

OPS = (CHANNEL_EXTREMES, ROUND_HEADS)
