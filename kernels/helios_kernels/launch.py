"""The one place where kernels start."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from helios_kernels.tuning import Config


def descriptor_memory(device: torch.device) -> Any:
    """Return Triton's allocator of the memory for a launch's descriptors, some hundred bytes a program."""
    return lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, config: Config, **constants: Any) -> None:
    """Start `kernel` on the device of its first tensor; do nothing for an empty grid."""
    if 0 not in grid:
        start(kernel, grid, args, constants, config)


def start(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any], config: Config) -> None:
    device = next(arg for arg in args if isinstance(arg, Tensor)).device
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    # Triton starts kernels on the current device, whatever device the tensors are on.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        # The default of enable_fp_fusion changes with Triton 3.10.
        kernel[grid](*args, **constants, **options, enable_fp_fusion=True)
