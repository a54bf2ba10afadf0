"""Are the kernels right on the GPU at hand? Every operation beside its twin, on small and ugly shapes.

A kernel that compiles and passes the tests can still be wrong on a chip, with a driver or a compiler, that its authors
never had. So `HELIOS_KERNELS=auto` takes those kernels alone that this has found right (`tried.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from helios_kernels.case import Case, Op
from helios_kernels.check import compare
from helios_kernels.registry import OPS

TRIED_IN = (torch.bfloat16, torch.float16)
"""What renders compute in on a GPU."""


def operations(chip: str) -> tuple[str, ...]:
    """What there are kernels of on `chip`."""
    return tuple(name for name, op in OPS.items() if op.chips is None or chip in op.chips)


@torch.no_grad()
def trial(device: torch.device, names: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """(operation, what is wrong with it or None) of these, which the device's chip has, one after another.

    Raises what a GPU says that answers nothing more, and OutOfMemoryError.
    """
    for name in names:
        cases = [case for case in OPS[name].cases if case.interpreted]
        faults = ((case.id, _fault(OPS[name], case, device)) for case in cases)
        yield name, next((f"{case}: {fault}" for case, fault in faults if fault), None)


def _fault(op: Op, case: Case, device: torch.device) -> str | None:
    try:
        for dtype in TRIED_IN:
            for result in compare(op, case, dtype, device):
                if result.exact.numel() and not result.good:
                    return f"{str(dtype).removeprefix('torch.')}: error {result.error:.3g}, bound {result.bound:.3g}"
    except torch.OutOfMemoryError:  # says nothing about the kernel
        raise
    except Exception as error:  # a compiler's, a launch's, a comparison's: the other cases are to be known as well
        if device.type == "cuda":
            torch.cuda.synchronize()
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
