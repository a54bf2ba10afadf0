"""What networks compute in while they are trained."""

from __future__ import annotations

import torch

from helios_cli.device import torch_dtype


def dtype_name(name: str, device: torch.device) -> str:
    """bfloat16 or float32. `auto` is what is fast on `device`, but never float16, whose gradients vanish."""
    return "bfloat16" if torch_dtype(name, device) == torch.bfloat16 else "float32"
