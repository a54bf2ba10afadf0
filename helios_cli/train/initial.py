"""New weights of a transformer, so that training starts where it learns."""

from __future__ import annotations

import torch
from torch import nn

from helios_cli.model.dit import HeliosDiT

KEY_BIAS = -0.16
QUERY_BIAS = 1.0
NORM_WEIGHT = 1.6
"""With these, a zero row's logit is near -7 below a word's: the some 490 of them would have nearly all attention."""


@torch.no_grad()
def initialise(dit: HeliosDiT, generator: torch.Generator) -> None:
    """New float32 weights in place: the flow is 0, and a still picture gives the same token in every history term."""
    for module in dit.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            _uniform(module, generator)
    width = dit.config.width
    for table in (dit.norm_out.scale_shift_table, *(block.scale_shift_table for block in dit.blocks)):
        table.copy_(torch.randn(table.shape, generator=generator) / width**0.5)
    dit.proj_out.weight.zero_()
    dit.proj_out.bias.zero_()
    tile_patches(dit)
    _quiet_padding(dit)


def tile_patches(dit: HeliosDiT) -> None:
    """History's patch layers from that of the noisy latents: a copy, and the mean over the cells of a larger patch."""
    source = dit.patch_embedding
    for layer in (dit.patch_short, dit.patch_mid, dit.patch_long):
        times = [ours // theirs for ours, theirs in zip(layer.kernel_size, source.kernel_size, strict=True)]
        layer.weight.copy_(source.weight.repeat(1, 1, *times) / (times[0] * times[1] * times[2]))
        layer.bias.copy_(source.bias)


def _quiet_padding(dit: HeliosDiT) -> None:
    """Opposite biases of queries and keys in the cross-attention, which is all that a zero row's key consists of."""
    first, second = dit.condition_embedder.text_embedder.linear_1, dit.condition_embedder.text_embedder.linear_2
    for layer in (first, second):
        layer.bias.zero_()
    second.weight.mul_(3)  # words then have keys as large as their bias
    for block in dit.blocks:
        attention = block.attn2
        attention.to_q.bias.fill_(QUERY_BIAS)
        attention.to_k.bias.fill_(KEY_BIAS)
        attention.norm_q.weight.fill_(NORM_WEIGHT)
        attention.norm_k.weight.fill_(NORM_WEIGHT)


def _uniform(layer: nn.Linear | nn.Conv3d, generator: torch.Generator) -> None:
    """Uniform with the deviation 1 / sqrt(3 fan-in), as PyTorch's own."""
    bound = layer.weight[0].numel() ** -0.5
    for parameter in (layer.weight, layer.bias):
        parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
