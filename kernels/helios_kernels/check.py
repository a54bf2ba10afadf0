"""A kernel against its twin: what the tests and the bench both do before they believe it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from helios_kernels.case import Case, Op

UNITS = 2**-21
"""Relative error of float32 results of a GPU's own units: two of ex2.approx and rsqrt.approx, 2^-22 each (PTX ISA)."""


@dataclass(frozen=True)
class Comparison:
    """One result three times: the kernel's, the twin's in the same dtype, and the twin's in float64."""

    name: str
    ours: Tensor
    native: Tensor
    exact: Tensor

    @property
    def error(self) -> float:
        return _distance(self.ours, self.exact)

    @property
    def bound(self) -> float:
        """Twice the twin's own error, and the rounding of the exact result to the dtype: to what a GPU's units make of
        exponentials and roots, where that is the less exact one."""
        rounding = _distance(self.exact.to(self.ours.dtype), self.exact)
        if self.exact.numel():
            rounding = max(rounding, UNITS * self.exact.abs().max().item())
        return 2 * _distance(self.native, self.exact) + rounding

    @property
    def good(self) -> bool:
        return self.error <= self.bound  # false for NaN


def compare(op: Op, case: Case, dtype: torch.dtype, device: torch.device, seed: int = 0) -> list[Comparison]:
    """Runs all three. AssertionError if the kernel changes an input it should not, or memory around the one it should.

    What the kernel allocates is filled with NaN, so that an element it leaves out shows.
    """
    torch.manual_seed(seed)
    inputs = op.inputs(case, dtype, device)
    exact = (op.exact or op.reference)(**{name: _double(value) for name, value in inputs.items()})
    native = op.reference(**inputs)
    before = {name: _storage(value).clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    with poisoned():
        ours = op.run(**inputs)
    for name, storage in before.items():
        if name in op.written:  # put back what the kernel may write: the rest must be as it was
            now = _storage(inputs[name]).clone()
            _view_like(now, inputs[name]).copy_(_view_like(storage, inputs[name]))
        else:
            now = _storage(inputs[name])
        torch.testing.assert_close(now, storage, rtol=0, atol=0, equal_nan=True, msg=f"{op.name} wrote beside {name}")
    if op.decode:
        ours, native = op.decode(ours), op.decode(native)
    results = [_as_tuple(result) for result in (ours, native, exact)]
    compared = [Comparison(f"{op.name} {case.id} [{i}]", *three) for i, three in enumerate(zip(*results, strict=True))]
    for result in compared:
        assert result.ours.shape == result.exact.shape and result.ours.dtype == result.native.dtype, result.name
    return compared


@contextlib.contextmanager
def poisoned():
    """`torch.empty` is full of NaN inside: reading memory that nobody wrote shows at once."""
    empty = torch.empty

    def poison(*args: Any, **kwargs: Any) -> Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    with mock.patch.object(torch, "empty", poison):
        yield


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _storage(x: Tensor) -> Tensor:
    """All memory behind a view, flat."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def _view_like(storage: Tensor, x: Tensor) -> Tensor:
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
