"""Triton's interpreter with the rounding of a GPU, and without work that it repeats or does for nothing."""

from __future__ import annotations

import dataclasses
import functools
import operator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton._C.libtriton import ir
from triton._utils import validate_block_shape
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorDescHandle, TensorHandle, interpreter_builder


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
        floats = torch.from_numpy(np.array(data, np.float32, order="C"))
        return floats.bfloat16().view(torch.uint16).numpy()

    interpreter._convert_float = rounded


def quicken() -> None:
    """From now on, in this process, let the interpreter do nothing twice and nothing in vain; all results are the same.

    Kernels take less than half of the time. The language stays patched between launches, so nothing can be compiled in
    this process.
    """
    _patch_once()
    _keep_types()
    _move_blocks()
    _convert_fp8()
    # Each sum of integers is computed again in int64 for an assertion of debug builds, which then is left out.
    interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)


def _patch_once() -> None:
    """Replace the members of Triton's language at the first launch, where by itself the interpreter does it for each
    launch and each call of a jitted function, `tl.zeros` and `tl.sum` too."""
    patch = interpreter._patch_lang
    kernel = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    nothing = interpreter._LangPatchScope()

    @functools.cache
    def patched() -> None:
        patch(kernel)

    def patch_first(_: Any) -> Any:
        patched()
        return nothing

    interpreter._patch_lang = patch_first


def _keep_types() -> None:
    """Keep NumPy's types, of which the interpreter makes a table for each operation, and all that follows from a shape,
    which is computed for each tensor and each type of one."""
    numpy_type = interpreter._get_np_dtype
    known: dict[str, np.dtype] = {}

    def known_type(dtype: tl.dtype) -> np.dtype:
        element = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
        if element.name not in known:  # "pointer<...>" for pointers
            known[element.name] = numpy_type(dtype)
        return known[element.name]

    @functools.cache
    def facts(*shape: int) -> tuple[tl.tuple, int, tl.tuple, tl.constexpr]:
        """Return shape and number of elements, as a type has them and as a tensor has them."""
        count = validate_block_shape(shape)
        return tl.tuple(shape), count, tl.tuple(map(tl.constexpr, shape)), tl.constexpr(count)

    scalar_shape, scalar_count = tl.tuple(()), tl.constexpr(1)

    def make_type(self: tl.block_type, element: tl.dtype, shape: Any) -> None:
        sizes = (size.value if isinstance(size, tl.constexpr) else size for size in shape)
        self.element_ty = element
        self.shape, self.numel, *self.of_tensors = facts(*sizes)
        self.name = f"<{self.shape}, {element}>"

    def make_tensor(self: tl.tensor, handle: TensorHandle, dtype: tl.dtype) -> None:
        self.handle, self.type, self.dtype = handle, dtype, dtype.scalar
        self.shape, self.numel = dtype.of_tensors if dtype.is_block() else (scalar_shape, scalar_count)

    interpreter._get_np_dtype = known_type
    tl.block_type.__init__ = make_type
    tl.block_type.to_ir = lambda self, builder: self
    tl.tensor.__init__ = make_tensor


ORIGIN = 64
"""The address from which memory is indexed: not 0, which NumPy takes for no address, and aligned for all types."""


@functools.cache
def _memory(dtype: np.dtype) -> np.ndarray:
    """Return all memory of the process as one array."""
    return _elements(ORIGIN, ((2**47 - ORIGIN) // dtype.itemsize,), (dtype.itemsize,), dtype)


def _elements(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a view of memory; strides are in bytes."""
    interface = {"data": (address, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _convert_fp8() -> None:
    """Look up what fp8 converts to, 256 values, and what float32 is exactly one of them, as after the kernels' own
    rounding; the interpreter takes all numbers apart."""
    convert = interpreter._convert_float

    @functools.cache
    def table(source: tl.dtype, target: tl.dtype, mode: Any) -> np.ndarray:
        return convert(np.arange(256, dtype=np.uint8), source, target, mode)

    def exact(data: np.ndarray) -> np.ndarray | None:
        found = torch.from_numpy(np.array(data, order="C")).to(torch.float8_e4m3fn)
        return found.view(torch.uint8).numpy() if np.array_equal(found.float().numpy(), data) else None

    def converted(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: Any) -> np.ndarray:
        if source.primitive_bitwidth == 8:
            return table(source, target, mode)[data.view(np.uint8)]
        if (source, target) == (tl.float32, tl.float8e4nv) and (found := exact(data)) is not None:
            return found
        return convert(data, source, target, mode)

    interpreter._convert_float = converted


def _move_blocks() -> None:
    """Load and store blocks by one operation of NumPy, where the interpreter goes from element to element."""

    def indices(pointers: TensorHandle, dtype: np.dtype) -> np.ndarray:
        return (pointers.data - np.uint64(ORIGIN) >> np.uint64(dtype.itemsize.bit_length() - 1)).view(np.int64)

    def load(pointers: TensorHandle, policy: Any, is_volatile: bool) -> TensorHandle:
        element = pointers.get_element_ty()
        dtype = interpreter._get_np_dtype(element)
        return TensorHandle(np.asarray(_memory(dtype).take(indices(pointers, dtype))), element)

    def masked_load(pointers: TensorHandle, mask: Any, other: Any, policy: Any, is_volatile: bool) -> TensorHandle:
        element = pointers.get_element_ty()
        if mask.data.all():
            return load(pointers, policy, is_volatile)
        dtype = interpreter._get_np_dtype(element)
        result = np.zeros(pointers.data.shape, dtype)
        if other is not None:
            result[...] = other.data
        valid = np.broadcast_to(mask.data, result.shape)
        result[valid] = _memory(dtype).take(indices(pointers, dtype)[valid])
        return TensorHandle(result, element)

    def moved(pointers: TensorHandle, offset: TensorHandle) -> TensorHandle:
        """Add to pointers: modulo 2^64, so the sign of an offset does not matter."""
        size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        steps = offset.data
        steps = steps.view(np.uint64) if steps.dtype.itemsize == 8 else steps.astype(np.uint64)
        return TensorHandle(pointers.data + size * steps, pointers.dtype)

    def store(pointers: TensorHandle, value: TensorHandle, policy: Any) -> None:
        dtype = value.data.dtype
        _memory(dtype)[indices(pointers, dtype)] = value.data

    def masked_store(pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, policy: Any) -> None:
        if mask.data.all():
            return store(pointers, value, policy)
        dtype, valid = value.data.dtype, mask.data
        _memory(dtype)[indices(pointers, dtype)[valid]] = value.data[valid]

    def box(descriptor: TensorDescHandle, offsets: list[TensorHandle], policy: Any) -> TensorHandle:
        """Load what of the box is within the tensor; the rest is zeros."""
        assert descriptor.padding == ir.PADDING_OPTION.PAD_ZERO and not descriptor.round_f32_to_tf32
        element = descriptor.base.dtype.element_ty
        dtype = interpreter._get_np_dtype(element)
        starts = [offset.data.item() for offset in offsets]
        assert starts[-1] * dtype.itemsize % 16 == 0, "block offset start must be 16-byte aligned"
        strides = [stride.data.item() * dtype.itemsize for stride in descriptor.strides]
        firsts = [max(0, start) for start in starts]
        ends = [
            min(start + size, limit.data.item())
            for start, size, limit in zip(starts, descriptor.block_shape, descriptor.shape, strict=True)
        ]
        result = np.zeros(descriptor.block_shape, dtype)
        lengths = tuple(end - first for first, end in zip(firsts, ends, strict=True))
        if min(lengths) > 0:
            address = descriptor.base.data.item() + sum(map(operator.mul, firsts, strides))
            inside = tuple(
                slice(first - start, end - start) for first, end, start in zip(firsts, ends, starts, strict=True)
            )
            result[inside] = _elements(address, lengths, tuple(strides), dtype)
        return TensorHandle(result, element)

    interpreter_builder.create_addptr = moved
    interpreter_builder.create_load = load
    interpreter_builder.create_masked_load = masked_load
    interpreter_builder.create_store = store
    interpreter_builder.create_masked_store = masked_store
    interpreter_builder.create_descriptor_load = box
