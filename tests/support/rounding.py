"""Triton's interpreter with the rounding of a GPU: by itself it cuts float32 off to bfloat16."""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def round_to_nearest() -> None:
    """From now on, in this process, ties to even; and back by a shift, which is quicker than the interpreter's way."""
    convert = interpreter._convert_float

    def rounded(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> np.ndarray:
        if (source, target) == (tl.bfloat16, tl.float32):
            return np.asarray(data).astype(np.uint32) << np.uint32(16)
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        bits = np.ascontiguousarray(data, np.float32).view(np.uint32).reshape(np.shape(data))
        nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        return (np.where(np.isnan(data), bits, nearest) >> np.uint32(16)).astype(np.uint16)

    interpreter._convert_float = rounded
