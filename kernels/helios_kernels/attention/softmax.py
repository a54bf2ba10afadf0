"""The running softmax that both attention kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fold(total, top, weight_sum, logits, scale, v, GUARD: tl.constexpr, WIDE: tl.constexpr):
    """Add one block of keys to the running sums of a block of queries.

    total [M, D] is the sum of 2^(l - top) v, weight_sum [M] that of 2^(l - top), l = scale * logits [M, N] and top [M]
    the largest so far. GUARD: a whole block may be -inf. WIDE: products in float32 (the interpreter's bfloat16 ones
    compute on bit patterns).
    """
    new_top = tl.maximum(top, tl.max(logits, axis=1) * scale)
    origin = tl.where(new_top == float("-inf"), 0.0, new_top) if GUARD else new_top
    weights = tl.exp2(logits * scale - origin[:, None])
    shrink = tl.exp2(top - origin)
    weight_sum = weight_sum * shrink + tl.sum(weights, axis=1)
    if WIDE:
        total = tl.dot(weights, v.to(tl.float32), total * shrink[:, None], input_precision="ieee")
    else:
        total = tl.dot(weights.to(v.dtype), v, total * shrink[:, None])
    return total, new_top, weight_sum


@triton.jit
def block_logits(q, k, scale, bias, keys, K, HAS_BIAS: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr):
    """Return the logits [M, N] of q [M, D] and k [N, D], keys numbered `keys` [N].

    Without a bias the factor `scale` is left to `fold`, whose multiply-add applies it at no cost.
    """
    if WIDE:
        logits = tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), input_precision="ieee")
    else:
        logits = tl.dot(q, tl.trans(k))
    if HAS_BIAS:
        # log2(e), as in `scale`
        extra = tl.load(bias + keys, keys < K, other=float("-inf")) * 1.4426950408889634
        logits = logits * scale + extra[None, :]
    elif MASKED:
        logits = tl.where((keys < K)[None, :], logits, float("-inf"))
    return logits
