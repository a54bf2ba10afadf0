"""Triton's interpreter with the rounding of a GPU, and without work that it repeats at every call."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def round_to_nearest() -> None:
    """From now on, in this process, ties to even; and back by a shift, which is quicker than the interpreter's way.

    By itself the interpreter cuts float32 off to bfloat16.
    """
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


def look_up_once() -> None:
    """From now on, in this process, keep what the interpreter looks up again for each call and each operation.

    Every call of a jitted function, `tl.zeros` and `tl.sum` too, searches all members of Triton's language for the ones
    to replace; every operation makes the table of NumPy's types. The results are the same, some of them twice as fast.
    """
    numpy_type = interpreter._get_np_dtype
    known: dict[str, np.dtype] = {}

    @functools.cache
    def builtins(package: Any) -> list[str]:
        """Called before anything in it is replaced: a replacement is no builtin any more."""
        return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]

    def patch_builtin(package: Any, *rest: Any) -> None:
        for name in builtins(package):
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, *rest)

    def known_type(dtype: tl.dtype) -> np.dtype:
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        if element.name not in known:  # "pointer<...>" for pointers
            known[element.name] = numpy_type(dtype)
        return known[element.name]

    interpreter._patch_builtin = patch_builtin
    interpreter._get_np_dtype = known_type
