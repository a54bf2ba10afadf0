"""Triton or plain PyTorch: decided once, with the reason, for the whole process.

`HELIOS_KERNELS` forces it: `auto` (default) takes Triton on GPUs where its kernels were tried and right (`trial.py`),
`triton` insists, `reference` is plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helios_kernels import tried, tuned

CHOICES = ("auto", "triton", "reference")

OLDEST_TRITON = (3, 6)
"""The oldest whose builds have been checked for spills; it comes with PyTorch 2.10."""

INTERPRETER = "interpreter"

_borrows = False

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


@dataclass(frozen=True)
class Backend:
    """`chip` is the key of the launch configurations (`configs.py`), None for plain PyTorch; `device` is its name.

    `borrowed`: the configurations are another chip's, to be tuned from.
    """

    chip: str | None
    reason: str
    device: str = ""
    borrowed: bool = False

    @property
    def name(self) -> str:
        return "triton" if self.chip else "reference"


@functools.cache
def backend() -> Backend:
    """What runs the kernels of this process. RuntimeError for a choice that cannot be had."""
    choice = os.environ.get("HELIOS_KERNELS", "auto")
    if choice not in CHOICES:
        raise RuntimeError(f"HELIOS_KERNELS is {choice!r}; it is one of {', '.join(CHOICES)}")
    if choice == "reference":
        return Backend(None, "HELIOS_KERNELS=reference")
    found = find_triton()
    if choice == "triton" and found.chip is None:
        raise RuntimeError(f"HELIOS_KERNELS=triton, but {found.reason}")
    return found if choice == "triton" or found.chip in (None, INTERPRETER) else _tried(found)


def is_untried() -> bool:
    """Whether kernels could run here, are left to `auto`, and have not been tried on this GPU."""
    if os.environ.get("HELIOS_KERNELS", "auto") != "auto":
        return False
    found = find_triton()
    return found.chip not in (None, INTERPRETER) and tried.of(found.device) is None


def _tried(found: Backend) -> Backend:
    """What runs with `auto`, where kernels could run."""
    faults = tried.of(found.device)
    if faults is None:
        return Backend(None, "kernels have not been tried on this GPU: the first film does, or HELIOS_KERNELS=triton")
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        return Backend(None, f"kernels were tried on this GPU and are wrong: {faults[0]}{more}")
    return replace(found, reason=f"{found.reason}, tried here and right")


@functools.cache
def find_triton() -> Backend:
    """What could run kernels here, whatever `HELIOS_KERNELS` says."""
    if importlib.util.find_spec("triton") is None:
        return Backend(None, "Triton is not installed")
    if not (torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ):  # half a second sooner than Triton knows
        return Backend(None, "PyTorch sees no GPU")
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST_TRITON:
        return Backend(None, f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}")
    if triton.knobs.runtime.interpret:
        return Backend(INTERPRETER, "TRITON_INTERPRET=1: kernels run on the CPU, slowly", INTERPRETER)
    if not torch.cuda.is_available():
        return Backend(None, "PyTorch sees no GPU")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    chip, found = chip_of(properties), tuned.of(properties.name)
    if chip is None and found is None and _borrows:
        return Backend(nearest_chip(), f"{properties.name} begins with another chip's", properties.name, borrowed=True)
    if chip is None and found is None:
        return Backend(None, f"no kernel configuration is shipped for {properties.name}; `helios bench kernels --tune`")
    by = f"configured as {chip}" if found is None else "configured by `helios bench kernels --tune`"
    return Backend(chip or found.like, f"Triton {triton.__version__} on {properties.name}, {by}", properties.name)


def chip_of(properties) -> str | None:
    """Key of the launch configurations for a GPU: the nearest one whose shared memory and instructions it has."""
    if torch.version.hip:
        return "gfx942" if properties.gcnArchName.split(":")[0] in ("gfx942", "gfx950") else None
    match (properties.major, properties.minor):
        case (8, 0):
            return "sm_80"
        case (8, _) | (12, _):  # 99 KiB of shared memory and mma.sync, consumer Blackwell included
            return "sm_89"
        case (9, 0):
            return "sm_90"
        case (10, _) | (11, _):
            return "sm_100"
    return None


def nearest_chip() -> str:
    """Whose configurations a chip that none are shipped for is tuned from: the ones that ask least of it."""
    return "gfx942" if torch.version.hip else "sm_89"


def borrow() -> None:
    """From now on kernels run in this process on a chip that none are shipped for: to be tuned, not to make films."""
    global _borrows
    _borrows = True
    find_triton.cache_clear()
    backend.cache_clear()


def current_chip() -> str:
    """Whose configurations a launch takes."""
    return _compiling_for.get() or find_triton().chip or ""


@contextmanager
def compiling_for(chip: str):
    """Calls inside choose `chip`'s kernels and configurations, whatever the tensors' device (ahead-of-time builds)."""
    token = _compiling_for.set(chip)
    try:
        yield
    finally:
        _compiling_for.reset(token)


def compiling_ahead() -> bool:
    return _compiling_for.get() is not None


def runs(x: Tensor) -> bool:
    """Whether a kernel does the work on `x`. Kernels are forward only: where gradients are recorded, PyTorch does."""
    if compiling_ahead():
        return True
    if torch.is_grad_enabled() or backend().chip is None:
        return False
    return x.is_cuda or backend().chip == INTERPRETER
