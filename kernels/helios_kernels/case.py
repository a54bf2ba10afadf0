"""What an operation's `cases.py` declares, for the tests, the ahead-of-time builds and the bench."""

from __future__ import annotations

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
        compiled: the dtypes it is built ahead of time in; a case for every kernel variant that a render starts.
    """

    id: str
    sizes: Mapping[str, Any]
    real: bool = False
    interpreted: bool = True
    compiled: tuple[torch.dtype, ...] = ()


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        run: the public function; returns a tensor or several.
        reference: the twin, same arguments, same results, nothing changed in place.
        inputs: (case, dtype, device) -> keyword arguments of both.
        moved_bytes, flops: what the case needs at least, of (case, element size in bytes) and of the case.
        written: names of the inputs that `run` changes.
        exact: what `run` approximates, on float64 inputs; the twin unless that rounds by itself.
        decode: results to comparable tensors, for those in a format of their own.
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
    exact: Callable | None = None
    decode: Callable | None = None
    baseline: Callable | None = None
    chips: tuple[str, ...] | None = None


BF16 = (torch.bfloat16,)
HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What renders compute in on a GPU."""

HISTORY = 2400
"""Rows of history at 640x384."""

STAGES = {"stage0": 2940, "stage1": 4560, "stage2": 11040}
"""Rows of the stream in each stage at 640x384."""

WIDTH, HEADS, HEAD, HIDDEN = 5120, 40, 128, 13824
"""The 14B model."""


def outliers(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Normal numbers off centre, every seventh channel ten times larger, as the stream of a trained model has them."""
    x = torch.randn(shape, device=device)
    x[..., ::7] *= 10
    return (x + 0.5).to(dtype)
