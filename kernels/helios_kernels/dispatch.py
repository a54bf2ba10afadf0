"""Decides between Triton and plain PyTorch, once and with a reason, for the whole process.

`HELIOS_KERNELS` forces it: `auto` (default) takes the kernels that a trial on this GPU found right (`trial.py`),
`triton` insists, `reference` is plain PyTorch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from helios_kernels import devices, trial

CHOICES = ("auto", "triton", "reference")

OLDEST_TRITON = (3, 6)
"""The oldest version whose builds have been checked for spills; it comes with PyTorch 2.10."""

INTERPRETER = "interpreter"

FP8_CHIPS = ("sm_89", "sm_90", "sm_100", "sm_120", INTERPRETER)
"""Chips that --quant fp8 is for: Ampere does not convert to fp8, and AMD's have another one."""

FP8_OPERATIONS = (
    "quantize",
    "modulated_norm_fp8",
    "gated_residual_modulated_norm_fp8",
    "attention_8bit",
    "channel_extremes",
    "round_heads",
)
"""Operations of --quant fp8."""

HALVES = (torch.bfloat16, torch.float16)
"""The dtypes of renders on a GPU, and of products on its tensor cores."""

_borrows = False

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


@dataclass(frozen=True)
class Backend:
    """The implementation that runs, and why.

    Attributes:
        chip: key of the launch configurations (`tuning.py`); None for plain PyTorch.
        device: the GPU's name.
        borrowed: whether the configurations are another chip's, to be tuned from.
        off: operations that PyTorch does all the same, with the reasons.
    """

    chip: str | None
    reason: str
    device: str = ""
    borrowed: bool = False
    off: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "triton" if self.chip else "reference"

    @property
    def on_gpu(self) -> bool:
        return self.chip not in (None, INTERPRETER)


def backend() -> Backend:
    """Return what runs the kernels of this process. RuntimeError for a choice that is not available."""
    return _decided(_choice(), devices.changes())


def _choice() -> str:
    return os.environ.get("HELIOS_KERNELS", "auto")


@functools.lru_cache(maxsize=1)
def _decided(choice: str, _: int) -> Backend:
    if choice not in CHOICES:
        raise RuntimeError(f"HELIOS_KERNELS is {choice!r}; it must be one of {', '.join(CHOICES)}")
    if choice == "reference":
        return Backend(None, "HELIOS_KERNELS=reference")
    found = find_triton()
    if choice == "triton" and found.chip is None:
        raise RuntimeError(f"HELIOS_KERNELS=triton, but {found.reason}")
    return _by_trial(found) if choice == "auto" and found.on_gpu else found


def is_untried() -> bool:
    """Return whether kernels could run here, are left to `auto`, and have not all been tried on this GPU."""
    found = find_triton() if _choice() == "auto" else None
    if found is None or found.chip is None or not found.on_gpu:
        return False
    verdicts = trial.of(found.device)
    return verdicts is None or not verdicts.faults.keys() >= set(trial.operations(found.chip))


def _by_trial(found: Backend) -> Backend:
    """Return what runs with `auto` where kernels could run."""
    verdicts, names = trial.of(found.device), trial.operations(found.chip or "")
    if verdicts is None:
        return Backend(None, "kernels have not been tried on this GPU: the first film does, or HELIOS_KERNELS=triton")
    off = {name: why for name in names if (why := verdicts.why_not(name))}
    first = next((f"{name}: {why}" for name, why in off.items()), "")
    faults = first + (f", and {len(off) - 1} more" if len(off) > 1 else "")
    if len(off) == len(names):
        return Backend(None, f"kernels were tried on this GPU and are wrong: {faults}")
    right = f"tried here and right except for {faults}" if off else "tried here and right"
    return replace(found, reason=f"{found.reason}, {right}", off={**found.off, **off})


def find_triton() -> Backend:
    """Return what could run kernels here, whatever `HELIOS_KERNELS` says."""
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
    return _on_gpu(torch.cuda.get_device_properties(torch.cuda.current_device()), triton.__version__)


def _on_gpu(properties: Any, version: str) -> Backend:
    from helios_kernels import tuning  # which needs this module

    name, shipped, tuned = properties.name, chip_of(properties), tuning.of(properties.name)
    borrowed = shipped is None and tuned is None and _borrows
    # A chip that none are shipped for is tuned from the configurations that ask least of a GPU.
    nearest = "gfx942" if torch.version.hip else "sm_86"
    chip = shipped or (tuned.like if tuned else nearest if borrowed else None)
    if chip is None:
        return Backend(None, f"no kernel configuration is shipped for {name}; `helios bench kernels --tune`")
    by = "configured by `helios bench kernels --tune`" if tuned else f"configured as {chip}"
    return Backend(chip, f"Triton {version} on {name}, {by}", name, borrowed, _off(chip))


def _off(chip: str) -> dict[str, str]:
    """Return the operations that have no kernel on a chip, with the reasons."""
    return {} if chip in FP8_CHIPS else dict.fromkeys(FP8_OPERATIONS, f"it has no kernel for {chip}")


def chip_of(properties: Any) -> str | None:
    """Return the chip whose configurations a GPU takes: the nearest whose shared memory and instructions it has."""
    if torch.version.hip:
        return "gfx942" if properties.gcnArchName.split(":")[0] in ("gfx942", "gfx950") else None
    if properties.major >= 10:
        return {10: "sm_100", 11: "sm_100", 12: "sm_120"}.get(properties.major)
    shipped = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 7): "sm_86", (8, 9): "sm_89", (9, 0): "sm_90"}
    return shipped.get((properties.major, properties.minor))


def borrow() -> None:
    """Let kernels run in this process on a chip that none are shipped for: to be tuned, not to make films."""
    global _borrows
    _borrows = True
    devices.changed()


def current_chip() -> str:
    """Return the chip whose configurations a launch takes."""
    return _compiling_for.get() or find_triton().chip or ""


@contextmanager
def compiling_for(chip: str) -> Iterator[None]:
    """Choose `chip`'s kernels and configurations, whatever the tensors' device (for ahead-of-time builds)."""
    token = _compiling_for.set(chip)
    try:
        yield
    finally:
        _compiling_for.reset(token)


def compiling_ahead() -> bool:
    return _compiling_for.get() is not None


def runs(x: Tensor, operation: str) -> bool:
    """Return whether a kernel does `operation` on `x`. Kernels are forward only: where gradients are recorded, PyTorch
    does it."""
    if compiling_ahead():
        return True
    if torch.is_grad_enabled():
        return False
    here = backend()
    if here.chip is None or operation in here.off:
        return False
    return here.chip == INTERPRETER or (x.is_cuda and not _is_elsewhere(x.device, here.device))


@functools.cache
def _is_elsewhere(device: torch.device, name: str) -> bool:
    """Return whether `device` is a GPU of another name than the one that was tried, whose kernels may not run on it."""
    return device.type == "cuda" and torch.cuda.get_device_name(device) != name


def is_half(x: Tensor) -> bool:
    """Return whether kernels can multiply x as it is; the interpreter multiplies all types."""
    return x.dtype in HALVES or current_chip() == INTERPRETER


def wide(x: Tensor) -> Tensor:
    """Return x in float32, in which twins compute whatever their tensors' type; float64 stays, for exact results."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


P = ParamSpec("P")
R = TypeVar("R")


class Operation(Generic[P, R]):
    """A PyTorch function that a kernel computes where `runs` says so: that of the same name in the `kernel.py` next to
    it.

    The function itself is the kernel's `twin`: it defines the result, and computes it everywhere else. `takes` says of
    arguments whether the kernel is for such.
    """

    def __init__(self, twin: Callable[P, R], takes: Callable[..., bool] = lambda *_, **__: True) -> None:
        functools.update_wrapper(self, twin)
        self.twin, self.takes, self.name = twin, takes, twin.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if runs(x, self.name) and self.takes(*args, **kwargs):
            return self.kernel(*args, **kwargs)
        return self.twin(*args, **kwargs)

    @functools.cached_property
    def kernel(self) -> Callable[P, R]:
        """The launcher; Triton is imported with it."""
        return getattr(importlib.import_module(f"{self.twin.__module__}.kernel"), self.name)
