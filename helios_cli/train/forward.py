"""The transformer's call in training: a batch of prompts, histories and timesteps, with gradients.

It computes what sampling does, from the transformer's own parts. Parameters are float32; with `compute_dtype` of the
transformer set, each product takes them rounded, and the float32 islands stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from helios_cli.model.dit import Call, HeliosDiT, TextContext

Run = Callable[..., Tensor]
"""Calls a block, its first argument, with the others."""

_ropes: WeakKeyDictionary[HeliosDiT, dict[tuple, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Given:
    """What a call is told besides the noisy latents and their timestep; it serves all calls with the same.

    Attributes:
        history: [B, M, E].
        grid: rows and columns of patches of the history's frames.
        passed: latent frames that went before each sample's chunk, where positions are absolute.
    """

    history: Tensor
    text: TextContext
    grid: tuple[int, int]
    passed: Sequence[int] | None = None


def given(
    dit: HeliosDiT,
    terms: tuple[Tensor, Tensor, Tensor],
    rows_BKE: Tensor,
    passed: Sequence[int] | None = None,
) -> Given:
    """From the terms of history, [B, C, T, H, W] each, and captions, which zero rows may follow."""
    _, p_h, p_w = dit.config.patch_size
    height, width = terms[0].shape[-2:]
    return Given(dit.embed_history(*terms), dit.embed_text(rows_BKE), (height // p_h, width // p_w), passed)


def plain(block: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Runs a block and keeps its activations."""
    return block(*args, **kwargs)


def checkpointed(block: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Runs a block and keeps its input alone; its gradient runs it once more."""
    return checkpoint(block, *args, use_reentrant=False, **kwargs)


def flow(dit: HeliosDiT, noisy_BCTHW: Tensor, timestep_B: Tensor, told: Given, *, run: Run = plain) -> Tensor:
    """Predicted flow, [B, C, T, H, W] in the compute dtype. `timestep_B` is on the 0..1000 scale."""
    return flow_and_hidden(dit, noisy_BCTHW, timestep_B, told, run=run)[0]


def flow_and_hidden(
    dit: HeliosDiT,
    noisy_BCTHW: Tensor,
    timestep_B: Tensor,
    told: Given,
    *,
    hidden: Collection[int] = (),
    run: Run = plain,
) -> tuple[Tensor, list[Tensor]]:
    """The flow, and the noisy rows [B, N, E] after each block whose index is in `hidden`, in order."""
    _, p_h, p_w = dit.config.patch_size
    rope = _rope(dit, told, (noisy_BCTHW.shape[-2] // p_h, noisy_BCTHW.shape[-1] // p_w))
    mods = dit.modulation(timestep_B)
    call = Call(noisy_BCTHW, told.history, mods, rope, told.text)
    x, split, last, seen = dit.enter(call), told.history.shape[1], len(dit.blocks) - 1, []
    for i, block in enumerate(dit.blocks):
        text = (told.text.keys[i], told.text.values[i], told.text.bias)
        x = run(block, x, mods.blocks[:, i], rope, text, split, noisy_only=i == last)
        if i in hidden:
            seen.append(x if i == last else x[:, split:])
    return dit.leave(call, x), seen


def _rope(dit: HeliosDiT, told: Given, noisy_grid: tuple[int, int]) -> Tensor:
    """The rotations of a batch's rows, each table made once."""
    if told.passed is None:
        return _table(dit, told.grid, noisy_grid, 0)
    return torch.stack([_table(dit, told.grid, noisy_grid, passed) for passed in told.passed])


def _table(dit: HeliosDiT, history_grid: tuple[int, int], noisy_grid: tuple[int, int], passed: int) -> Tensor:
    tables, key = _ropes.setdefault(dit, {}), (history_grid, noisy_grid, passed, dit.device)
    if key not in tables:
        tables[key] = dit.rope(history_grid, noisy_grid, passed)
    return tables[key]
