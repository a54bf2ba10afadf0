"""The VAE's causal 3x3x3 convolution at the decoder's finest levels, with the sums and the norm behind it."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_kernels.dispatch import INTERPRETER, Operation, current_chip, is_half
from helios_kernels.vae_norm_silu import vae_norm_silu

CHIPS = ("sm_90", "sm_100")
"""Chips with boxes in hardware (TMA)."""

CHANNELS = (96, 192)
"""Channels, in and out, of the kernel: three quarters of the operations of a decode at 640x384."""


def takes(x_BTHWC: Tensor, weight_NCTHW: Tensor, *_: Any, **__: Any) -> bool:
    """Return whether there is a kernel for such tensors."""
    if current_chip() not in (*CHIPS, INTERPRETER) or not is_half(x_BTHWC):
        return False
    channels, laid_out = x_BTHWC.shape[-1], weight_NCTHW.is_contiguous(memory_format=torch.channels_last_3d)
    return laid_out and channels in CHANNELS and weight_NCTHW.shape == (channels, channels, 3, 3, 3)


@functools.partial(Operation, takes=takes)
def causal_conv(x_BTHWC: Tensor, weight_NCTHW: Tensor, bias_N: Tensor, shortcut_BTHWN: Tensor | None = None) -> Tensor:
    """Convolve [B, T + 2, H, W, C], zeros around each frame, and add bias and shortcut: [B, T, H, W, N], contiguous.

    The kernel rounds once, PyTorch after each sum. x is contiguous within each batch item, and the weight, [N, C, 3, 3,
    3], is channels-last (`torch.channels_last_3d`).
    """
    y_BTHWN = F.conv3d(x_BTHWC.movedim(-1, 1), weight_NCTHW, bias_N, padding=(0, 1, 1)).movedim(1, -1)
    return (y_BTHWN if shortcut_BTHWN is None else y_BTHWN + shortcut_BTHWN).contiguous()


@functools.partial(Operation, takes=takes)
def causal_conv_norm(
    x_BTHWC: Tensor,
    weight_NCTHW: Tensor,
    bias_N: Tensor,
    shortcut_BTHWN: Tensor | None,
    gamma_N: Tensor,
    out_BTHWN: Tensor,
) -> Tensor:
    """Write `vae_norm_silu` of `causal_conv`, rounded before it, to `out`, and return it.

    With a `shortcut` the sum replaces the shortcut; without one nothing else is kept. `out` and `shortcut` are
    contiguous within each batch item, so `out` may be a slice of the next convolution's padded buffer.
    """
    total = causal_conv.twin(x_BTHWC, weight_NCTHW, bias_N, shortcut_BTHWN)
    if shortcut_BTHWN is not None:
        shortcut_BTHWN.copy_(total)
    return vae_norm_silu.twin(total, gamma_N, out_BTHWN)
