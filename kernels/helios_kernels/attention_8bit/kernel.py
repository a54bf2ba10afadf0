"""Attention of 8-bit factors through plain pointers, on all chips with e4m3 products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from helios_kernels.attention_8bit import WEIGHT_BITS, Kind, rounded
from helios_kernels.dispatch import INTERPRETER, current_chip
from helios_kernels.launch import launch
from helios_kernels.quantize.kernel import round_to_3_bits
from helios_kernels.tuning import config


@triton.jit
def _fold_keys(
    total, top, weight_sum, q, k, v, start, K, k_s, v_d, factors,
    MASKED: tl.constexpr, WIDE: tl.constexpr, BITS: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fold in the block of keys at `start`; MASKED where it may reach past K."""
    rows, channels = tl.arange(0, BLOCK_K), tl.arange(0, D)
    keys = start + rows
    k_place = k + tl.cast(start, tl.int64) * k_s + rows[:, None] * k_s + channels[None, :]
    v_place = v + start + channels.to(tl.int64)[:, None] * v_d + rows[None, :]
    if MASKED:
        k_block = tl.load(k_place, (keys < K)[:, None], other=0.0)
        v_block = tl.load(v_place, (keys < K)[None, :], other=0.0)
    else:
        k_block, v_block = tl.load(k_place), tl.load(v_place)
    if WIDE:
        logits = tl.dot(q.to(tl.float32), tl.trans(k_block.to(tl.float32)), input_precision="ieee")
    else:
        logits = tl.dot(q, tl.trans(k_block)).to(tl.float32)
    logits = logits * factors[:, None]
    if MASKED:
        logits = tl.where((keys < K)[None, :], logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, axis=1))
    weights = tl.exp2(logits - (new_top - BITS)[:, None])
    shrink = tl.exp2(top - new_top)
    weight_sum = weight_sum * shrink + tl.sum(weights, axis=1)
    total = total * shrink[:, None]
    if WIDE:
        total += tl.dot(round_to_3_bits(weights), tl.trans(v_block.to(tl.float32)), input_precision="ieee")
    else:
        # Hopper sums fp8 products in fewer than 32 bits: never over more than a block of keys.
        weights = weights.to(v_block.dtype)
        total = tl.dot(weights, tl.trans(v_block), total, max_num_imprecise_acc=BLOCK_K)
    return total, new_top, weight_sum


@triton.jit(do_not_specialize=["Q", "K"])
def attention_8bit_kernel(
    q,  # [B, Q, N, D] int8 or e4m3, contiguous as all others
    k,  # [B, K, N, D] of the same type
    v,  # [B, N, D, K padded] e4m3
    factors,  # [B, N, Q] float32, of the logits
    v_scales,  # [B, N, D] float32
    out,  # [B, Q, N, D]
    N, Q, K,
    v_d,  # stride of v along D, in elements
    WIDE: tl.constexpr, BITS: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // N).to(tl.int64), (tl.program_id(1) % N).to(tl.int64)
    both = batch * N + head
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channels = tl.arange(0, D)
    place = (batch * Q + rows.to(tl.int64)[:, None]) * N * D + head * D + channels[None, :]

    q_block = tl.load(q + place, (rows < Q)[:, None], other=0.0)
    factor = tl.load(factors + both * Q + rows, rows < Q, other=0.0)
    k += (batch * K * N + head) * D
    v += both * D * v_d
    total = tl.zeros((BLOCK_Q, D), tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((BLOCK_Q,), tl.float32)
    last = (K - 1) // BLOCK_K * BLOCK_K
    total, top, weight_sum = _fold_keys(
        total, top, weight_sum, q_block, k, v, last, K, N * D, v_d, factor, True, WIDE, BITS, D, BLOCK_K
    )
    for start in range(0, last, BLOCK_K):
        total, top, weight_sum = _fold_keys(
            total, top, weight_sum, q_block, k, v, start, K, N * D, v_d, factor, False, WIDE, BITS, D, BLOCK_K
        )
    scale = tl.load(v_scales + both * D + channels)
    total = total / weight_sum[:, None] * scale[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), (rows < Q)[:, None])


def attention_8bit(q_BQND: Tensor, k_BKND: Tensor, v_BKND: Tensor, kind: Kind = "int8") -> Tensor:
    B, Q, N, D = q_BQND.shape
    K = k_BKND.shape[1]
    of = rounded(q_BQND, k_BKND, v_BKND, kind)
    out = torch.empty((B, Q, N, D), dtype=q_BQND.dtype, device=q_BQND.device)
    chosen = config("attention_8bit")
    launch(
        attention_8bit_kernel,
        (triton.cdiv(Q, chosen.block_q), B * N),
        of.q_BQND, of.k_BKND, of.v_BNDK, of.factors_BNQ, of.v_scales_BND, out, N, Q, K, of.v_BNDK.stride(2),
        config=chosen, WIDE=current_chip() == INTERPRETER, BITS=WEIGHT_BITS,
        D=D, BLOCK_Q=chosen.block_q, BLOCK_K=chosen.block_k,
    )  # fmt: skip
    return out
