"""Triton or plain PyTorch: decided once, with the reason, for the whole process.

`HELIOS_KERNELS` forces it: `auto` (default) takes, on a GPU where they were tried, the kernels that were right
(`trial.py`), `triton` insists, `reference` is plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from helios_kernels import devices, tried, tuned

CHOICES = ("auto", "triton", "reference")

OLDEST_TRITON = (3, 6)
"""The oldest whose builds have been checked for spills; it comes with PyTorch 2.10."""

INTERPRETER = "interpreter"

FP8_CHIPS = ("sm_89", "sm_90", "sm_100", "sm_120", "gfx942", INTERPRETER)
"""Ampere converts nothing to fp8."""

_borrows = False

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


@dataclass(frozen=True)
class Backend:
    """`chip` is the key of the launch configurations (`configs.py`), None for plain PyTorch; `device` is its name.

    `borrowed`: the configurations are another chip's, to be tuned from. `off`: operations that PyTorch does all the
    same, with the reasons.
    """

    chip: str | None
    reason: str
    device: str = ""
    borrowed: bool = False
    off: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "triton" if self.chip else "reference"


def backend() -> Backend:
    """What runs the kernels of this process. RuntimeError for a choice that cannot be had."""
    return _decided(os.environ.get("HELIOS_KERNELS", "auto"), devices.changes())


@functools.lru_cache(maxsize=1)
def _decided(choice: str, _: int) -> Backend:
    if choice not in CHOICES:
        raise RuntimeError(f"HELIOS_KERNELS is {choice!r}; it is one of {', '.join(CHOICES)}")
    if choice == "reference":
        return Backend(None, "HELIOS_KERNELS=reference")
    found = find_triton()
    if choice == "triton" and found.chip is None:
        raise RuntimeError(f"HELIOS_KERNELS=triton, but {found.reason}")
    return found if choice == "triton" or found.chip in (None, INTERPRETER) else _tried(found)


def is_untried() -> bool:
    """Whether kernels could run here, are left to `auto`, and have not all been tried on this GPU."""
    if os.environ.get("HELIOS_KERNELS", "auto") != "auto":
        return False
    found = find_triton()
    if found.chip in (None, INTERPRETER):
        return False
    known = tried.of(found.device)
    return known is None or any(name not in known.faults for name in _operations(found.chip))


def _tried(found: Backend) -> Backend:
    """What runs with `auto`, where kernels could run."""
    known = tried.of(found.device)
    if known is None:
        return Backend(None, "kernels have not been tried on this GPU: the first film does, or HELIOS_KERNELS=triton")
    names = _operations(found.chip)
    off = {name: why for name in names if (why := known.why_not(name))}
    first = next((f"{name}: {why}" for name, why in off.items()), "")
    told = first + (f", and {len(off) - 1} more" if len(off) > 1 else "")
    if len(off) == len(names):
        return Backend(None, f"kernels were tried on this GPU and are wrong: {told}")
    right = f"tried here and right but for {told}" if off else "tried here and right"
    return replace(found, reason=f"{found.reason}, {right}", off={**found.off, **off})


def _operations(chip: str) -> tuple[str, ...]:
    from helios_kernels.trial import operations  # which imports all of them, and they this

    return operations(chip)


def find_triton() -> Backend:
    """What could run kernels here, whatever `HELIOS_KERNELS` says."""
    return _found(devices.changes())


@functools.lru_cache(maxsize=1)
def _found(_: int) -> Backend:
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
        told = f"{properties.name} begins with another chip's"
        return Backend(nearest_chip(), told, properties.name, borrowed=True, off=_lacks(nearest_chip()))
    if chip is None and found is None:
        return Backend(None, f"no kernel configuration is shipped for {properties.name}; `helios bench kernels --tune`")
    by = f"configured as {chip}" if found is None else "configured by `helios bench kernels --tune`"
    chip, told = chip or found.like, f"Triton {triton.__version__} on {properties.name}, {by}"
    return Backend(chip, told, properties.name, off=_lacks(chip))


def _lacks(chip: str) -> dict[str, str]:
    return {} if chip in FP8_CHIPS else {"quantize": "the chip has no fp8"}


def chip_of(properties) -> str | None:
    """Key of the launch configurations for a GPU: the nearest one whose shared memory and instructions it has."""
    if torch.version.hip:
        return "gfx942" if properties.gcnArchName.split(":")[0] in ("gfx942", "gfx950") else None
    match (properties.major, properties.minor):
        case (8, 0):
            return "sm_80"
        case (8, 6) | (8, 7):
            return "sm_86"
        case (8, 9):
            return "sm_89"
        case (9, 0):
            return "sm_90"
        case (10, _) | (11, _):
            return "sm_100"
        case (12, _):
            return "sm_120"
    return None


def nearest_chip() -> str:
    """Whose configurations a chip that none are shipped for is tuned from: the ones that ask least of it."""
    return "gfx942" if torch.version.hip else "sm_86"


def borrow() -> None:
    """From now on kernels run in this process on a chip that none are shipped for: to be tuned, not to make films."""
    global _borrows
    _borrows = True
    devices.changed()


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


def runs(x: Tensor, operation: str) -> bool:
    """Whether a kernel does the work of `operation` on `x`. Kernels are forward only: where gradients are recorded,
    PyTorch does."""
    if compiling_ahead():
        return True
    if torch.is_grad_enabled():
        return False
    here = backend()
    return here.chip is not None and operation not in here.off and (x.is_cuda or here.chip == INTERPRETER)
