"""The one place where kernels start, or, for ahead-of-time builds, where their arguments are written down instead."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helios_kernels.configs import Config

_recording: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)


@dataclass(frozen=True)
class Launch:
    """A kernel with the positional arguments, constants and configuration that it would have started with."""

    kernel: Any
    args: tuple
    constants: dict[str, Any]
    config: Config


def launch(kernel, grid: tuple[int, ...], *args, config: Config, **constants) -> None:
    """Start `kernel` on the device of its first tensor; nothing happens for an empty grid."""
    if 0 in grid:
        return
    recording = _recording.get()
    if recording is not None:
        recording.append(Launch(kernel, args, constants, config))
        return
    device = next(arg for arg in args if isinstance(arg, Tensor)).device
    # Triton starts kernels on the current device, whatever device the tensors are on.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](
            *args,
            **constants,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,  # the default changes with Triton 3.10
        )


@contextlib.contextmanager
def recorded():
    """Inside, launches are appended to the yielded list and nothing runs; tensors may be on the meta device."""
    launches: list[Launch] = []
    token = _recording.set(launches)
    try:
        yield launches
    finally:
        _recording.reset(token)
