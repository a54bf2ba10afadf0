"""The transformer in training: loaded or new, and called on a batch of prompts, histories and timesteps with gradients.

It computes what sampling computes, from the transformer's own parts. Parameters are float32; if the transformer has a
`compute_dtype`, each product rounds them, and the float32 islands stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SCHEDULERS
from helios_cli.model.dit import Call, HeliosDiT, TextContext
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import set_kind, set_trained, write_component
from helios_cli.weights.load import load_component

RunBlock = Callable[..., Tensor]
"""Calls a block, its first argument, with the other arguments."""

KEY_BIAS = -0.16
QUERY_BIAS = 1.0
NORM_WEIGHT = 1.6
"""With these, the logit of a zero row is near -7 below a word's; otherwise the roughly 490 zero rows would get nearly
all attention."""

_ropes: WeakKeyDictionary[HeliosDiT, dict[tuple, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Conditioning:
    """The inputs of a call apart from noisy latents and timestep; calls with the same ones share it.

    Attributes:
        history: [B, M, E].
        grid: rows and columns of patches of the history's frames.
        past_frames: latent frames before each sample's chunk, where positions are absolute.
    """

    history: Tensor
    text: TextContext
    grid: tuple[int, int]
    past_frames: Sequence[int] | None = None


def conditioning_of(
    dit: HeliosDiT,
    terms: tuple[Tensor, Tensor, Tensor],
    rows_BKE: Tensor,
    past_frames: Sequence[int] | None = None,
) -> Conditioning:
    """Embed the terms of history, [B, C, T, H, W] each, and captions, which may be padded with zero rows."""
    _, p_h, p_w = dit.config.patch_size
    height, width = terms[0].shape[-2:]
    grid = (height // p_h, width // p_w)
    return Conditioning(dit.embed_history(*terms), dit.embed_text(rows_BKE), grid, past_frames)


def plain(block: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Run a block and keep its activations."""
    return block(*args, **kwargs)


def checkpointed(block: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Run a block and keep only its input; computing its gradient runs it again."""
    return checkpoint(block, *args, use_reentrant=False, **kwargs)


def flow(
    dit: HeliosDiT, noisy_BCTHW: Tensor, timestep_B: Tensor, conditioning: Conditioning, *, run: RunBlock = plain
) -> Tensor:
    """Return the predicted flow, [B, C, T, H, W] in the compute dtype. `timestep_B` is on the 0..1000 scale."""
    return flow_and_hidden(dit, noisy_BCTHW, timestep_B, conditioning, run=run)[0]


def flow_and_hidden(
    dit: HeliosDiT,
    noisy_BCTHW: Tensor,
    timestep_B: Tensor,
    conditioning: Conditioning,
    *,
    hidden: Collection[int] = (),
    run: RunBlock = plain,
) -> tuple[Tensor, list[Tensor]]:
    """Return the flow, and the noisy rows [B, N, E] after each block whose index is in `hidden`, in order."""
    _, p_h, p_w = dit.config.patch_size
    rope = _rope(dit, conditioning, (noisy_BCTHW.shape[-2] // p_h, noisy_BCTHW.shape[-1] // p_w))
    mods, text = dit.modulation(timestep_B), conditioning.text
    call = Call(noisy_BCTHW, conditioning.history, mods, rope, text)
    x, split, last, rows = dit.enter(call), conditioning.history.shape[1], len(dit.blocks) - 1, []
    for i, block in enumerate(dit.blocks):
        context = (text.keys[i], text.values[i], text.bias)
        x = run(block, x, mods.blocks[:, i], rope, context, split, noisy_only=i == last)
        if i in hidden:
            rows.append(x if i == last else x[:, split:])
    return dit.leave(call, x), rows


def _rope(dit: HeliosDiT, conditioning: Conditioning, noisy_grid: tuple[int, int]) -> Tensor:
    """Return the rotations of a batch's rows; each table is made once."""
    tables = _ropes.setdefault(dit, {})

    def table(past_frames: int) -> Tensor:
        key = (conditioning.grid, noisy_grid, past_frames, dit.device)
        if key not in tables:
            tables[key] = dit.rope(conditioning.grid, noisy_grid, past_frames)
        return tables[key]

    return table(0) if conditioning.past_frames is None else torch.stack([table(n) for n in conditioning.past_frames])


def compile_blocks(dit: HeliosDiT) -> None:
    for block in dit.blocks:
        block.compile()


def transformer_of(start: Checkpoint) -> HeliosDiT:
    """Load the transformer of a checkpoint with float32 parameters."""
    component = start.component("transformer")
    with torch.device("meta"):
        dit = HeliosDiT(DiTConfig.from_json(component.config))
    return load_component(dit, component, device="cpu", dtype=torch.float32)


def new_transformer(start: Checkpoint, seed: int) -> HeliosDiT:
    """Make a transformer with the checkpoint's config and new weights."""
    dit = HeliosDiT(DiTConfig.from_json(start.component("transformer").config))
    initialise(dit, torch.Generator().manual_seed(seed))
    return dit


def save_transformer(folder: Path, dit: HeliosDiT, kind: str, knows: str) -> None:
    """Write the transformer into the checkpoint `folder`, which becomes one of this kind."""
    write_component(folder, "transformer", dit)
    set_kind(folder, kind, SCHEDULERS[kind])
    set_trained(folder, knows)


@torch.no_grad()
def initialise(dit: HeliosDiT, generator: torch.Generator) -> None:
    """Set new weights in place: the flow is 0, and a still picture gives the same token in every history term."""
    for module in dit.modules():
        if isinstance(module, nn.Linear | nn.Conv3d):
            _uniform(module, generator)
    for table in (dit.norm_out.scale_shift_table, *(block.scale_shift_table for block in dit.blocks)):
        table.copy_(torch.randn(table.shape, generator=generator) / dit.config.width**0.5)
    dit.proj_out.weight.zero_()
    dit.proj_out.bias.zero_()
    _tile_patches(dit)
    _quiet_padding(dit)


def _tile_patches(dit: HeliosDiT) -> None:
    """Set history's patch layers to copies of the noisy latents' layer: the mean over the cells of a larger patch."""
    source = dit.patch_embedding
    for layer in (dit.patch_short, dit.patch_mid, dit.patch_long):
        times = [large // small for large, small in zip(layer.kernel_size, source.kernel_size, strict=True)]
        layer.weight.copy_(source.weight.repeat(1, 1, *times) / (times[0] * times[1] * times[2]))
        layer.bias.copy_(source.bias)


def _quiet_padding(dit: HeliosDiT) -> None:
    """Give queries and keys of the cross-attention opposite biases, which are all of a zero row's key."""
    first, second = dit.condition_embedder.text_embedder.linear_1, dit.condition_embedder.text_embedder.linear_2
    for layer in (first, second):
        layer.bias.zero_()
    second.weight.mul_(3)  # so that words have keys as large as their bias
    for block in dit.blocks:
        attention = block.attn2
        attention.to_q.bias.fill_(QUERY_BIAS)
        attention.to_k.bias.fill_(KEY_BIAS)
        attention.norm_q.weight.fill_(NORM_WEIGHT)
        attention.norm_k.weight.fill_(NORM_WEIGHT)


def _uniform(layer: nn.Linear | nn.Conv3d, generator: torch.Generator) -> None:
    """Draw weights with the deviation 1 / sqrt(3 fan-in), as PyTorch does."""
    bound = layer.weight[0].numel() ** -0.5
    for parameter in (layer.weight, layer.bias):
        parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
