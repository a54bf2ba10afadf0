"""Every operation against its twin, as the tests and the bench do it before they trust a kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from helios_kernels.attention import cases as attention
from helios_kernels.attention_8bit import cases as attention_8bit
from helios_kernels.case import Case, Op
from helios_kernels.causal_conv import cases as causal_conv
from helios_kernels.modulation import cases as modulation
from helios_kernels.qk_norm_rope import cases as qk_norm_rope
from helios_kernels.quantize import cases as quantize
from helios_kernels.round_heads import cases as round_heads
from helios_kernels.sampler import cases as sampler
from helios_kernels.vae_norm_silu import cases as vae_norm_silu

_TRANSFORMER = (modulation, qk_norm_rope, attention, attention_8bit, round_heads, quantize, sampler)
_VAE = (vae_norm_silu, causal_conv)

OPS: dict[str, Op] = {op.name: op for module in (*_TRANSFORMER, *_VAE) for op in module.OPS}

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
        """Twice the twin's own error, plus the rounding of the exact result to the dtype or, if that is larger, the
        error of a GPU's units for exponentials and roots."""
        rounding = max(_distance(self.exact.to(self.ours.dtype), self.exact), UNITS * self.exact.abs().max().item())
        return 2 * _distance(self.native, self.exact) + rounding

    @property
    def good(self) -> bool:
        """Return whether the error is within the bound: false for NaN, true for an empty result."""
        return not self.exact.numel() or self.error <= self.bound


def compare(op: Op, case: Case, dtype: torch.dtype, device: torch.device) -> list[Comparison]:
    """Run all three, and compare what they return and what they write. AssertionError if the kernel changes an input it
    should not, or memory around one it should.

    The kernel's allocations are filled with NaN, which shows elements that it leaves out.
    """
    torch.manual_seed(0)
    inputs = op.inputs(case, dtype, device)
    exact = op.results(op.exact or op.reference, {name: _double(value) for name, value in inputs.items()})
    written = [name for name in op.written if inputs[name] is not None]
    copies = {**inputs, **{name: inputs[name].clone() for name in written}}
    native = op.results(op.reference, copies)
    before = {name: _storage(value).clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    with poisoned():
        ours = op.results(op.run, inputs)
    for name, storage in before.items():
        now = _storage(inputs[name])
        if name in op.written:  # restore what the kernel may write: the rest must be as it was
            now = now.clone()
            _view_like(now, inputs[name]).copy_(_view_like(storage, inputs[name]))
        # Compared as bytes: there may be NaN.
        assert torch.equal(now.view(torch.uint8), storage.view(torch.uint8)), f"{op.name} wrote outside of {name}"
    if op.decode:
        ours, native = op.decode(ours), op.decode(native)
    three = zip(ours, native, exact, strict=True)
    compared = [Comparison(f"{op.name} {case.id} [{i}]", *results) for i, results in enumerate(three)]
    for result in compared:
        assert result.ours.shape == result.exact.shape and result.ours.dtype == result.native.dtype, result.name
    return compared


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill the results of `torch.empty` with NaN, so that memory that is read before it is written shows."""
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
    """Return all memory behind a view, flat."""
    return x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)


def _view_like(storage: Tensor, x: Tensor) -> Tensor:
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())
