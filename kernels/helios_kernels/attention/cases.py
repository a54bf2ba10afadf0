from __future__ import annotations

from dataclasses import replace

import torch

from helios_kernels.attention import attention
from helios_kernels.case import BF16, HEAD, HEADS, HISTORY, STAGES, Case, Op
from helios_kernels.dispatch import HALVES, wide


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict:
    """Slice a fused product [B, S, 3, N, D]; queries are a tensor of their own where they are not as many as the keys.

    `gap` elements between rows make a layout that TMA cannot address. `outside` keys at the start have a bias of -inf.
    """
    sizes = case.sizes
    B, Q, K, N, D = (sizes.get(name, default) for name, default in zip("BQKND", (1, 1, 1, HEADS, HEAD), strict=True))
    product = torch.randn(B, max(Q, K), 3 * N * D + sizes.get("gap", 0), device=device).to(dtype)
    q, k, v = product[..., : 3 * N * D].unflatten(-1, (3, N, D)).unbind(2)
    if Q != K:
        q = torch.randn(B, Q, N, D, device=device).to(dtype)
    bias = None
    if sizes.get("bias"):
        bias = torch.zeros(K, device=device)
        bias[-2:] = 5.0  # two rows in place of some hundred padding rows
        bias[: sizes.get("outside", 0)] = -torch.inf
    return {"q_BQND": 2 * q, "k_BKND": k[:, :K], "v_BKND": v[:, :K], "bias_K": bias}


def _flops(case: Case) -> int:
    sizes = case.sizes
    return 4 * sizes.get("B", 1) * sizes["Q"] * sizes["K"] * sizes.get("N", HEADS) * sizes.get("D", HEAD)


PROMPT = 122
"""120 tokens and two rows for the padding."""


def _through_pointers(q_BQND, k_BKND, v_BKND, bias_K):
    """Run the kernel of the chips without TMA, also where the interpreter would take the other one."""
    from helios_kernels.attention.kernel import run

    return run(q_BQND, k_BKND, v_BKND, bias_K, tma=False)


def _real(name: str, stage: str, **sizes) -> Case:
    return Case(name, sizes, real=True, compiled=HALVES if stage == "stage2" else ())


def exact_attention(
    q_BQND: torch.Tensor, k_BKND: torch.Tensor, v_BKND: torch.Tensor, bias_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute attention with a head's whole Q x K matrix in memory."""
    heads = []
    for q, k, v in zip(*(wide(tensor).unbind(2) for tensor in (q_BQND, k_BKND, v_BKND)), strict=True):
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if bias_K is not None:
            logits = logits + bias_K
        heads.append(logits.softmax(-1) @ v)
    return torch.stack(heads, dim=2).to(q_BQND.dtype)


ATTENTION = Op(
    run=attention,
    twin=exact_attention,
    baseline=attention.twin,
    inputs=_inputs,
    cases=(
        *(_real(f"{stage}-self", stage, Q=S, K=S) for stage, S in STAGES.items()),
        _real("stage2-last-block", "", Q=8640, K=STAGES["stage2"]),
        *(_real(f"{stage}-cross", stage, Q=S - HISTORY, K=PROMPT, bias=True) for stage, S in STAGES.items()),
        Case("head64-self", {"Q": 4096, "K": 4096, "N": 16, "D": 64}, compiled=BF16),
        Case("head64-cross", {"Q": 4096, "K": PROMPT, "N": 16, "D": 64, "bias": True}, compiled=BF16),
        Case("head32-self", {"Q": 4096, "K": 4096, "N": 4, "D": 32}, compiled=BF16),
        Case("head16-self", {"Q": 4096, "K": 4096, "N": 4, "D": 16}, compiled=BF16),
        # Few queries and heads, real numbers of keys: programs do not depend on each other.
        *(Case(f"Q130-K{S}", {"Q": 130, "K": S, "N": 1}) for S in (STAGES["stage0"], STAGES["stage2"])),
        Case("Q257-K122-bias", {"Q": 257, "K": PROMPT, "N": 2, "bias": True}),
        Case("Q1-K1", {"Q": 1, "K": 1, "N": 3}),
        Case("Q63-K257-D64-B2", {"B": 2, "Q": 63, "K": 257, "N": 2, "D": 64}),
        Case("Q257-K63-D32", {"Q": 257, "K": 63, "N": 3, "D": 32}),
        Case("Q63-K63-D16-B2-bias", {"B": 2, "Q": 63, "K": 63, "N": 2, "D": 16, "bias": True}),
        Case("Q40-K300-first-block-outside", {"Q": 40, "K": 300, "N": 1, "D": 64, "bias": True, "outside": 200}),
        Case("Q256-K256-even", {"Q": 256, "K": 256, "N": 1}),
        Case("Q100-K100-gap", {"Q": 100, "K": 100, "N": 2, "D": 64, "gap": 3}),
    ),
    flops=_flops,
)

ATTENTION_POINTERS = replace(
    ATTENTION,
    label="attention_pointers",
    run=_through_pointers,
    cases=tuple(case for case in ATTENTION.cases if case.interpreted),
    # The other chips' configurations ask for more shared memory than the kernel has there.
    chips=("sm_80", "sm_86", "sm_89", "sm_120", "gfx942"),
)

OPS = (ATTENTION, ATTENTION_POINTERS)
