"""The declarations of an operation's `cases.py`, for the tests, the ahead-of-time builds and the bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helios_kernels.dispatch import HALVES


@dataclass(frozen=True)
class Case:
    """One set of sizes.

    Attributes:
        id: short, unique within the operation.
        sizes: what `inputs` makes the tensors from.
        real: a shape of the 14B model, timed by the bench.
        compiled: the dtypes it is built ahead of time in; a case for every kernel variant that a render starts.
        small: whether Triton's interpreter can run it although it is real or compiled; most of those are too large.
    """

    id: str
    sizes: Mapping[str, Any]
    real: bool = False
    compiled: tuple[torch.dtype, ...] = ()
    small: bool = False

    @property
    def interpreted(self) -> bool:
        return self.small or not (self.real or self.compiled)


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        run: the public function; returns a tensor or several.
        inputs: (case, dtype, device) -> its keyword arguments.
        flops: operations of a case.
        written: names of the inputs that `run` changes; `write_only` are those that it does not read.
        more_bytes: (inputs) -> bytes that `run` moves in addition to each input and each result once, or, below 0,
            leaves where they are.
        twin: what `run` does without kernels; the public function's own twin unless there is a better definition.
        exact: what `run` approximates, on float64 inputs; the twin unless that rounds by itself.
        decode: makes tensors that can be compared of results in a format of their own.
        baseline: PyTorch's own way where the twin is no fair comparison; the twin otherwise.
        chips: where it can be built; None for everywhere.
        label: its name, if that is not the function's.
    """

    run: Callable[..., Any]
    inputs: Callable[[Case, torch.dtype, torch.device], dict[str, Any]]
    cases: tuple[Case, ...]
    flops: Callable[[Case], int] | None = None
    written: tuple[str, ...] = ()
    write_only: tuple[str, ...] = ()
    more_bytes: Callable[..., int] = lambda **_: 0
    twin: Callable[..., Any] | None = None
    exact: Callable[..., Any] | None = None
    decode: Callable[..., Any] | None = None
    baseline: Callable[..., Any] | None = None
    chips: tuple[str, ...] | None = None
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.run.__name__

    @property
    def reference(self) -> Callable[..., Any]:
        """PyTorch's way, which defines the result."""
        return self.twin or self.run.twin  # type: ignore[attr-defined]

    def results(self, function: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return all that `function` makes: the tensors that it returns, and those of its inputs that it writes."""
        made = function(**inputs)
        returned = made if isinstance(made, tuple) else (made,)
        written = [inputs[name] for name in self.written if inputs[name] is not None]
        return (*returned, *(one for one in written if not any(one is other for other in returned)))

    def moved_bytes(self, inputs: dict[str, Any]) -> int:
        """Run the operation, and return the bytes that it has to read and write."""
        read = [one for name, one in inputs.items() if isinstance(one, Tensor) and name not in self.write_only]
        return sum(one.nbytes for one in (*read, *self.results(self.run, inputs))) + self.more_bytes(**inputs)


BF16 = (torch.bfloat16,)
DTYPES = (*HALVES, torch.float32)

HISTORY = 2400
"""Rows of history at 640x384."""

STAGES = {"stage0": 2940, "stage1": 4560, "stage2": 11040}
"""Rows of the stream in each stage at 640x384."""

WIDTH, HEADS, HEAD, HIDDEN = 5120, 40, 128, 13824
"""The 14B model."""


def stages(compiled: tuple[torch.dtype, ...], **sizes: Any) -> tuple[Case, ...]:
    """Return a real case for each stage, the last of them built ahead of time."""
    return tuple(
        Case(stage, {"S": S, **sizes}, real=True, compiled=compiled if stage == "stage2" else ())
        for stage, S in STAGES.items()
    )


def outliers(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw normal numbers off centre, every seventh channel ten times larger, as in the stream of a trained model."""
    x = torch.randn(shape, device=device)
    x[..., ::7] *= 10
    return (x + 0.5).to(dtype)
