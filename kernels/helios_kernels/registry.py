"""All operations with their twins and cases: what the tests, the ahead-of-time builds and the bench go through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """One set of sizes.

    Attributes:
        id: short, unique within the operation.
        sizes: what `inputs` makes the tensors from.
        real: a shape of the 14B model, timed by the bench.
        interpreted: small enough for Triton's interpreter.
        compiled: built ahead of time; one for every kernel variant that a render starts.
    """

    id: str
    sizes: Mapping[str, Any]
    real: bool = False
    interpreted: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        run: the public function; returns a tensor or several.
        reference: the twin, same arguments, same results, nothing changed in place.
        inputs: (case, dtype, device) -> keyword arguments of both.
        moved_bytes, flops: what the case needs at least, of (case, element size in bytes) and of the case.
        written: names of the inputs that `run` changes.
        baseline: PyTorch's own way where the twin is no fair comparison; the twin otherwise.
        chips: where it can be built; None for everywhere.
    """

    name: str
    run: Callable
    reference: Callable
    inputs: Callable[[Case, torch.dtype, torch.device], dict[str, Any]]
    cases: tuple[Case, ...]
    moved_bytes: Callable[[Case, int], int]
    flops: Callable[[Case], int] | None = None
    written: tuple[str, ...] = ()
    baseline: Callable | None = None
    chips: tuple[str, ...] | None = None


class _Ops(Mapping[str, Op]):
    """Filled at first use: the case files import this module."""

    @functools.cached_property
    def _all(self) -> dict[str, Op]:
        from helios_kernels.attention.cases import ATTENTION
        from helios_kernels.dmd_step.cases import DMD_STEP
        from helios_kernels.gated_residual.cases import GATED_RESIDUAL_OPS
        from helios_kernels.modulated_norm.cases import LAYER_NORM, MODULATED_NORM
        from helios_kernels.qk_norm_rope.cases import QK_NORM_ROPE
        from helios_kernels.quantize.cases import QUANTIZE
        from helios_kernels.renoise.cases import RENOISE
        from helios_kernels.vae_norm_silu.cases import CAUSAL_PAD, VAE_NORM_SILU

        ops = (
            MODULATED_NORM, LAYER_NORM, *GATED_RESIDUAL_OPS, QK_NORM_ROPE, ATTENTION, QUANTIZE, RENOISE, DMD_STEP,
            VAE_NORM_SILU, CAUSAL_PAD,
        )  # fmt: skip
        return {op.name: op for op in ops}

    def __getitem__(self, name: str) -> Op:
        return self._all[name]

    def __iter__(self):
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


OPS: Mapping[str, Op] = _Ops()
