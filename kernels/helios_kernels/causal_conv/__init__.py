"""The VAE's causal 3x3x3 convolution at the decoder's finest levels, with the sums behind it."""

from __future__ import annotations

import torch
from torch import Tensor

from helios_kernels.causal_conv import reference
from helios_kernels.dispatch import INTERPRETER, current_chip, runs

CHIPS = ("sm_90", "sm_100")
"""Chips with boxes in hardware (TMA)."""

CHANNELS = (96, 192)
"""Channels, in and out, of the kernel: three quarters of the operations of a decode at 640x384."""

DTYPES = (torch.bfloat16, torch.float16)


def causal_conv(
    x_BTHWC: Tensor, weight_NCTHW: Tensor, bias_N: Tensor | None = None, shortcut_BTHWN: Tensor | None = None
) -> Tensor:
    """Convolve [B, T + 2, H, W, C], zeros around each frame, and add bias and shortcut: [B, T, H, W, N], contiguous.

    The kernel rounds once, PyTorch after each sum. x is contiguous within each batch item, and the weight, [N, C, 3, 3,
    3], is channels-last (`torch.channels_last_3d`).
    """
    if not (runs(x_BTHWC, "causal_conv") and takes(x_BTHWC, weight_NCTHW)):
        return reference.causal_conv(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN)
    from helios_kernels.causal_conv.kernel import run

    return run(x_BTHWC, weight_NCTHW.permute(0, 2, 3, 4, 1), bias_N, shortcut_BTHWN)


def takes(x_BTHWC: Tensor, weight_NCTHW: Tensor) -> bool:
    """Return whether there is a kernel for such tensors."""
    here, is_wide = current_chip(), x_BTHWC.dtype not in DTYPES
    if here not in (*CHIPS, INTERPRETER) or (is_wide and here != INTERPRETER):
        return False
    channels, laid_out = x_BTHWC.shape[-1], weight_NCTHW.is_contiguous(memory_format=torch.channels_last_3d)
    return laid_out and channels in CHANNELS and weight_NCTHW.shape == (channels, channels, 3, 3, 3)
