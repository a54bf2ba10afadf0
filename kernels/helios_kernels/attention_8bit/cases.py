from __future__ import annotations

import torch

from helios_kernels.attention import attention
from helios_kernels.attention.cases import exact_attention
from helios_kernels.attention_8bit import attention_8bit
from helios_kernels.case import BF16, HEAD, HEADS, STAGES, Case, Op
from helios_kernels.dispatch import FP8_CHIPS


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Draw queries and keys that have passed an RMSNorm, and keys that have something in common."""
    sizes = case.sizes
    B, Q, K, N, D = (sizes.get(name, default) for name, default in zip("BQKND", (1, 1, 1, HEADS, HEAD), strict=True))
    q, k, v = (torch.randn(B, rows, N, D, device=device).to(dtype) for rows in (Q, K, K))
    k[..., ::16] += sizes.get("shift", 0)
    return {"q_BQND": q, "k_BKND": k, "v_BKND": v, "kind": "e4m3" if sizes.get("e4m3") else "int8"}


def _both(name: str, **sizes) -> tuple[Case, ...]:
    compiled = BF16 if sizes.pop("compiled", False) else ()
    real = bool(compiled)
    return tuple(
        Case(f"{name}-{kind}", {**sizes, "e4m3": kind == "e4m3"}, real=real, compiled=compiled)
        for kind in ("int8", "e4m3")
    )


ATTENTION_8BIT = Op(
    run=attention_8bit,
    exact=lambda kind, **inputs: exact_attention(**inputs),
    baseline=lambda kind, **inputs: attention.twin(**inputs),
    inputs=_inputs,
    cases=(
        *_both("stage2-self", Q=STAGES["stage2"], K=STAGES["stage2"], compiled=True),
        *_both("head64-self", Q=4096, K=4096, N=16, D=64, compiled=True),
        *_both("Q130-K2940", Q=130, K=STAGES["stage0"], N=1),
        *_both("Q63-K257-D64-B2", B=2, Q=63, K=257, N=2, D=64),
        *_both("Q257-K63-D32", Q=257, K=63, N=3, D=32),
        *_both("Q1-K1", Q=1, K=1, N=2),
        Case("Q100-K300-shifted", {"Q": 100, "K": 300, "N": 2, "shift": 8.0}),
    ),
    flops=lambda case: 4 * case.sizes["Q"] * case.sizes["K"] * case.sizes.get("N", HEADS) * case.sizes.get("D", HEAD),
    chips=FP8_CHIPS,
)

OPS = (ATTENTION_8BIT,)
