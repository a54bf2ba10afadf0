"""Looked at before any weight is read: which model, and whether this machine can hold it."""

from __future__ import annotations

import torch

from helios_cli import machine
from helios_cli.errors import CheckpointError, MachineError
from helios_cli.units import format_bytes
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.names import EMBEDDED

BEST = "distilled"
"""The published model that `auto` takes where it can."""


def auto_model(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The model that `auto` stands for, and a line that says which, why, and how to get the other."""
    source = hub.source_of(BEST)
    folder = hub.find(source)
    if folder is None:
        return EMBEDDED, f"model: {EMBEDDED}, as {BEST} is not downloaded; get it with `helios models pull {BEST}`"
    try:
        require_memory(Checkpoint.open(folder), device, dtype)
    except (MachineError, CheckpointError) as error:
        return EMBEDDED, f"model: {EMBEDDED}, as {error.message}; `-m {BEST}` insists"
    return BEST, f"model: {BEST}, from the local cache; `-m {EMBEDDED}` takes the small one in the package"


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
