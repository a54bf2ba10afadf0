"""Measurements of attention: on a GPU, `auto` takes what was fastest there.

With `auto` each new shape is timed once on a GPU, over every attention that runs and agrees with the others, and the
winner is remembered in a file, by device, versions and shape:

    {"version": 1, "devices": {"NVIDIA H200, torch 2.13.0, triton 3.7.1": {
        "16384x16384 40x128 bfloat16": {"name": "cudnn", "ms": {"cudnn": 3.1, "flash": 3.6}, "refused": {}}}}}
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helios_cli.errors import InputError, MachineError
from helios_cli.units import counted_rows
from helios_kernels import devices

AUTO = "auto"

AGREES = 0.03
"""Relative difference between two attentions in bfloat16 that are both right: ten times what their rounding makes."""

AGREES_IN_8_BITS = 0.1
"""The same for attention with 8-bit products, whose rounding alone makes up to 5 %."""

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Measured:
    """The timing of one shape: the winner, milliseconds of those that ran, why others were refused, and the distances
    from the first one."""

    name: str
    ms: dict[str, float]
    refused: dict[str, str]
    apart: dict[str, float] = field(default_factory=dict)

    def covers(self, names: Iterable[str]) -> bool:
        """Return whether all of `names` were tried."""
        return all(name in self.ms or name in self.refused for name in names)

    def fastest(self, names: Iterable[str]) -> str:
        """Return the fastest of `names`, which leave out kernels that are switched off; "sdpa" if none of them runs."""
        return min((name for name in names if name in self.ms), key=lambda name: self.ms[name], default="sdpa")


class Measurements:
    """The measurements of one device, in a file. A damaged file, or one of another version, counts as empty."""

    def __init__(self, file: Path | None, device: str) -> None:
        self.file, self.device = file, device
        self.known = {} if file is None else read_choices(file, device)

    def keep(self, shape: str, measured: Measured) -> None:
        self.known[shape] = measured
        if self.file is None:
            return
        try:
            devices.change(self.device, self.file, lambda known: _with(known, shape, measured))
        except OSError:  # a home that cannot be written: measured again next time
            self.file = None


def read_choices(file: Path, device: str) -> dict[str, Measured]:
    """Return the measurements of a device by shape."""
    return _choices(devices.read(file).get(device))


def _choices(entry: Any) -> dict[str, Measured]:
    try:
        return {
            shape: Measured(str(one["name"]), dict(one["ms"]), dict(one["refused"]), dict(one.get("apart", {})))
            for shape, one in entry.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _with(entry: Any, shape: str, measured: Measured) -> dict:
    return {key: vars(one) for key, one in (_choices(entry) | {shape: measured}).items()}


def shape_key(q_BQND: Tensor, k_BKND: Tensor, bias_K: Tensor | None) -> str:
    """Return the key of a shape; shapes with the same `units.counted_rows` of rows share their choice."""
    rows = "x".join(str(counted_rows(tensor.shape[1])) for tensor in (q_BQND, k_BKND))
    heads = "x".join(map(str, q_BQND.shape[2:]))
    batch = f" batch {q_BQND.shape[0]}" if q_BQND.shape[0] > 1 else ""
    dtype = str(q_BQND.dtype).removeprefix("torch.")
    return f"{rows} {heads} {dtype}{batch}{'' if bias_K is None else ' bias'}"


def measure(
    candidates: dict[str, Attention],
    q_BQND: Tensor,
    k_BKND: Tensor,
    v_BKND: Tensor,
    bias_K: Tensor | None,
    seconds: Callable[[Callable[[], object]], float],
    agrees: float = AGREES,
) -> Measured:
    """Time the candidates on these tensors, in the order of trust; with none left the name is "sdpa".

    A candidate that fails, or that differs from the first one that ran by more than `agrees`, is refused. Running out
    of memory is raised.
    """
    first: Tensor | None = None
    times: dict[str, float] = {}
    distances: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, run in candidates.items():
        try:
            result = run(q_BQND, k_BKND, v_BKND, bias_K)
            apart = 0.0 if first is None else distance(result, first)
            if not apart <= agrees:  # true for NaN as well
                refused[name] = f"differs from {next(iter(times))} by {apart:.2g}"
                continue
            times[name] = 1e3 * seconds(functools.partial(run, q_BQND, k_BKND, v_BKND, bias_K))
            if first is None:
                first = result
            else:
                distances[name] = apart
        except torch.OutOfMemoryError:  # no fault of the attention
            raise
        except Exception as error:  # each back end and each compiler has its own for a shape that it cannot take
            refused[name] = first_line(error)
    return Measured(min(times, key=lambda name: times[name], default="sdpa"), times, refused, distances)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the distance of `a` from `b`, as a share of `b`."""
    a, b = a.float(), b.float()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def require(name: str, run: Attention, device: torch.device, dtype: torch.dtype, heads: int, head_size: int) -> None:
    """Raise MachineError, with the reason, if the attention called `name` does not run for such heads on `device`."""
    q = torch.ones(1, 64, heads, head_size, device=device, dtype=dtype)
    try:
        run(q, q, q, None)
    except Exception as error:  # see `measure`
        which = f"heads of {head_size} in {str(dtype).removeprefix('torch.')}"
        raise MachineError(
            f"--attention {name} does not run on {device} for {which}: {first_line(error)}",
            hint="--attention auto uses what runs here; `helios doctor` shows it",
        ) from error


def unknown(name: str, names: tuple[str, ...]) -> InputError:
    return InputError(f"--attention {name}: no such attention", hint=f"write {', '.join(names)}")
