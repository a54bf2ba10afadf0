"""Compares what could compute one thing: attention, and the convolutions that are chosen likewise."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from helios_cli.errors import InputError, MachineError
from helios_cli.measured import Measured
from helios_cli.units import counted_rows

AUTO = "auto"

AGREES = 0.03
"""Relative difference between two attentions in bfloat16 that are both right: ten times what their rounding makes."""

AGREES_IN_8_BITS = 0.1
"""The same for attention with 8-bit products, whose rounding alone makes up to 5 %."""

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


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
