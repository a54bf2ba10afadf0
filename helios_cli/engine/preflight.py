"""Looked at before any weight is read: whether this machine can hold it."""

from __future__ import annotations

import torch

from helios_cli import machine
from helios_cli.errors import MachineError
from helios_cli.units import format_bytes
from helios_cli.weights.checkpoint import Checkpoint


def require_memory(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """MachineError if the weights alone are more than the memory that is free."""
    needed = checkpoint.resident_bytes(dtype.itemsize)
    free = machine.free_bytes(device)
    if needed > free:
        name = str(dtype).removeprefix("torch.")
        raise MachineError(
            f"the model's weights take {format_bytes(needed)} in {name}, {format_bytes(free)} are free on {device}",
            hint="`helios doctor` shows what fits here",
        )
