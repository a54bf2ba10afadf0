"""Attention through TMA descriptors, for Hopper and Blackwell data-centre chips.

Programs are persistent: one or two for each multiprocessor. Each makes its descriptors once and takes tiles of queries
in turn. Tiles that run at about the same time belong to one head, whose keys and values stay in the L2 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from helios_kernels.attention.softmax import block_logits, fold


@triton.jit
def _fold_keys(
    total, top, weight_sum, q, k, v, bias, batch, head, start, K, scale,
    HAS_BIAS: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Fold in the block of keys at `start`; MASKED where it may reach past K."""
    keys = start + tl.arange(0, BLOCK_K)
    k_block = k.load([batch, head, start, 0]).reshape(BLOCK_K, D)
    logits = block_logits(q, k_block, scale, bias, keys, K, HAS_BIAS, MASKED, WIDE)
    v_block = v.load([batch, head, start, 0]).reshape(BLOCK_K, D)
    return fold(total, top, weight_sum, logits, 1.0 if HAS_BIAS else scale, v_block, HAS_BIAS, WIDE)


@triton.jit(do_not_specialize=["B", "N", "Q", "K", "tiles"])
def attention_tma_kernel(
    q,  # [B, Q, N, D]
    k,  # [B, K, N, D]
    v,  # [B, K, N, D]
    bias,  # [K] float32
    out,  # [B, Q, N, D]
    N, Q, K,
    scale,  # log2(e) / sqrt(D)
    q_b, q_s, q_n, k_b, k_s, k_n, v_b, v_s, v_n, out_b, out_s, out_n,  # strides in elements; those along D are 1
    B,
    tiles,  # blocks of queries of all heads and batch items
    HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    SPECIALIZE: tl.constexpr,  # some warps load, others compute
):  # fmt: skip
    # A descriptor reads zeros past the end of its rows: no masks for ragged lengths. The result is stored by pointers,
    # as a descriptor's buffer would take the place of a third one for keys and values.
    queries = tl.make_tensor_descriptor(q, [B, N, Q, D], [q_b, q_n, q_s, 1], [1, 1, BLOCK_Q, D])
    keys = tl.make_tensor_descriptor(k, [B, N, K, D], [k_b, k_n, k_s, 1], [1, 1, BLOCK_K, D])
    values = tl.make_tensor_descriptor(v, [B, N, K, D], [v_b, v_n, v_s, 1], [1, 1, BLOCK_K, D])
    blocks = tl.cdiv(Q, BLOCK_Q)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tile % blocks * BLOCK_Q
        batch, head = tile // blocks // N, tile // blocks % N
        q_block = queries.load([batch, head, first, 0]).reshape(BLOCK_Q, D)
        total = tl.zeros((BLOCK_Q, D), tl.float32)
        top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
        weight_sum = tl.zeros((BLOCK_Q,), tl.float32)
        # Whole blocks need no mask; with a bias, which is added everywhere, the mask is part of it. Triton specialises
        # the warps of a single loop only, without spills.
        whole = 0 if HAS_BIAS or SPECIALIZE else K // BLOCK_K * BLOCK_K
        for start in range(0, whole, BLOCK_K):
            total, top, weight_sum = _fold_keys(
                total, top, weight_sum, q_block, keys, values, bias, batch, head, start, K, scale,
                False, False, WIDE, D, BLOCK_K,
            )  # fmt: skip
        for start in tl.range(whole, K, BLOCK_K, warp_specialize=SPECIALIZE):
            total, top, weight_sum = _fold_keys(
                total, top, weight_sum, q_block, keys, values, bias, batch, head, start, K, scale,
                HAS_BIAS, True, WIDE, D, BLOCK_K,
            )  # fmt: skip
        rows, columns = (first + tl.arange(0, BLOCK_Q))[:, None], tl.arange(0, D)[None, :]
        place = out + batch.to(tl.int64) * out_b + head * out_n + rows.to(tl.int64) * out_s + columns
        tl.store(place, (total / weight_sum[:, None]).to(out.dtype.element_ty), rows < Q)
