"""Attention through plain pointers: Ampere, Ada, consumer Blackwell and CDNA."""

from __future__ import annotations

import triton
import triton.language as tl

from helios_kernels.attention.softmax import block_logits, fold


@triton.jit
def _fold_keys(
    total, top, weight_sum, q, k, v, bias, start, K, k_s, v_s, scale,
    HAS_BIAS: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fold in the block of keys at `start`; MASKED where it may reach past K."""
    rows, channels = tl.arange(0, BLOCK_K), tl.arange(0, D)[None, :]
    keys = start + rows
    # The block's start goes into the 64-bit base, so that offsets within the block are 32-bit ones.
    k_place = k + tl.cast(start, tl.int64) * k_s + rows[:, None] * k_s + channels
    v_place = v + tl.cast(start, tl.int64) * v_s + rows[:, None] * v_s + channels
    if MASKED:
        k_block = tl.load(k_place, (keys < K)[:, None], other=0.0)
        v_block = tl.load(v_place, (keys < K)[:, None], other=0.0)
    else:
        k_block, v_block = tl.load(k_place), tl.load(v_place)
    logits = block_logits(q, k_block, scale, bias, keys, K, HAS_BIAS, MASKED, WIDE)
    return fold(total, top, weight_sum, logits, 1.0 if HAS_BIAS else scale, v_block, HAS_BIAS, WIDE)


@triton.jit(do_not_specialize=["Q", "K"])
def attention_kernel(
    q,  # [B, Q, N, D]
    k,  # [B, K, N, D]
    v,  # [B, K, N, D]
    bias,  # [K] float32
    out,  # [B, Q, N, D]
    N, Q, K,
    scale,  # log2(e) / sqrt(D)
    q_b, q_s, q_n, k_b, k_s, k_n, v_b, v_s, v_n, out_b, out_s, out_n,  # strides in elements; those along D are 1
    HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // N).to(tl.int64), (tl.program_id(1) % N).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channels = tl.arange(0, D)[None, :]
    exists = (rows < Q)[:, None]
    wide_rows = rows.to(tl.int64)[:, None]

    q_block = tl.load(q + batch * q_b + head * q_n + wide_rows * q_s + channels, exists, other=0.0)
    k += batch * k_b + head * k_n
    v += batch * v_b + head * v_n
    total = tl.zeros((BLOCK_Q, D), tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((BLOCK_Q,), tl.float32)

    # The last block first: it alone has a mask, and while nothing is summed up yet there are registers to spare for it.
    last = (K - 1) // BLOCK_K * BLOCK_K
    total, top, weight_sum = _fold_keys(
        total, top, weight_sum, q_block, k, v, bias, last, K, k_s, v_s, scale, HAS_BIAS, True, WIDE, D, BLOCK_K
    )
    for start in range(0, last, BLOCK_K):
        total, top, weight_sum = _fold_keys(
            total, top, weight_sum, q_block, k, v, bias, start, K, k_s, v_s, scale, HAS_BIAS, False, WIDE, D, BLOCK_K
        )
    place = out + batch * out_b + head * out_n + wide_rows * out_s + channels
    tl.store(place, (total / weight_sum[:, None]).to(out.dtype.element_ty), exists)
