"""The Helios diffusion transformer: one stream of history and noisy tokens, predicting the flow of the noisy ones.

What is unusual about it:
- History is clean latents, patchified three times coarser the older it is, placed before the noisy tokens in the same
  self-attention: [ long | mid | anchor, newest | noisy ]. Nothing is causal, nothing is masked.
- Positions are relative: the same frame indices in every chunk, so a film of any length looks like its first second.
- History gets timestep 0, the noisy tokens the real one: two modulation rows, chosen by row.
- The prompt guides the noisy tokens only; history rows pass by the cross-attention.

Shapes: B batch, C latent channels, T latent frames, H W latent height and width (pixels / 8), S tokens, M history
tokens, E width, N heads, D head size, L layers. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helios_kernels as kernels
from helios_cli.architecture import DiTConfig
from helios_cli.model import ops
from helios_cli.model.attention import Choice
from helios_cli.model.block import Block, Past, Rows, modulation_table
from helios_cli.model.fp8 import Layer, modulated_norm
from helios_cli.model.ops import linear
from helios_cli.units import LATENTS_PER_CHUNK, LONG_TERM, MAX_TEXT_TOKENS, MID_TERM, SHORT_TERM, held_keys

FP32_ISLANDS = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "history_key_scale"})
"""Path components of parameters that stay float32 whatever the compute dtype."""

LEFT_OUT = -1e30
"""Bias of a logit whose exponential is zero next to any other; not infinite, as infinities may be subtracted."""


@dataclass(frozen=True)
class Modulation:
    """Scale, shift and gate rows of one timestep: computed once, used by every step and chunk with that timestep.

    Attributes:
        blocks: [B or 1, L, 2, 6, E] float32; row 0 of the third axis is history's, row 1 the noisy tokens'.
            The six are shift, scale, gate of self-attention and shift, scale, gate of the feed-forward.
        out: [B or 1, 2, E] float32, shift and scale of the last norm.
    """

    blocks: Tensor
    out: Tensor

    def norm(self, index: int) -> tuple[Tensor, Tensor]:
        """(scale, shift), [B or 1, 2, E], of the norm that block `index` begins with; the last one after all blocks."""
        if index == self.blocks.shape[1]:
            shift, scale = (row.expand(-1, 2, -1) for row in self.out.split(1, dim=1))
        else:
            shift, scale = self.blocks[:, index, :, :2].unbind(2)
        return scale, shift


@dataclass(frozen=True)
class TextContext:
    """Keys and values of a prompt for every block: computed once per prompt.

    Attributes:
        keys, values: [L, B, K, N, D], K the prompt's tokens and one row (two in low precision) for all padding.
        bias: [K] float32, log of how many equal rows a row stands for, or None if the prompt fills all 512.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None


class Call(NamedTuple):
    """The inputs of one model call, as `HeliosDiT.forward` takes them.

    With `past`, for each block, a call leaves keys and values of its history rows there. One without history rows, made
    by `without_history`, attends over those that are there."""

    noisy_BCTHW: Tensor
    history_BME: Tensor
    mods: Modulation
    rope: Tensor
    text: TextContext
    past: tuple[Past, ...] | None = None

    @property
    def has_past(self) -> bool:
        """Return whether an earlier call has left keys and values of its history rows."""
        return self.past is not None and self.past[0].keys is not None

    def without_history(self) -> Call:
        split = self.history_BME.shape[1]
        return self._replace(history_BME=self.history_BME[:, :0], rope=self.rope[..., split:, :, :])


class ConditionEmbedder(nn.Module):
    """Timestep and prompt to the model's width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder: Any = _two_linears(config.freq_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder: Any = _two_linears(config.text_dim, config.width)

    def time(self, timestep_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Timesteps on the 0..1000 scale -> (embedding [B, E], projection [B, 6, E]) in `dtype`."""
        half = self.freq_dim // 2
        frequency = torch.exp(-math.log(10000) / half * torch.arange(half, device=timestep_B.device))
        angle = timestep_B.float()[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.time_embedder.linear_1.weight.dtype)
        hidden = F.silu(_apply(self.time_embedder.linear_1, wave))
        embedding = _apply(self.time_embedder.linear_2, hidden).to(dtype)
        return embedding, _apply(self.time_proj, F.silu(embedding)).unflatten(-1, (6, -1))

    def text(self, rows_BKE: Tensor) -> Tensor:
        hidden = _apply(self.text_embedder.linear_1, rows_BKE, gelu=True)
        return _apply(self.text_embedder.linear_2, hidden)


def _apply(layer: nn.Linear, x: Tensor, *, gelu: bool = False) -> Tensor:
    return linear(x, layer.weight, layer.bias, gelu=gelu)


def _two_linears(inner: int, outer: int) -> Any:
    pair = nn.Module()
    pair.linear_1, pair.linear_2 = nn.Linear(inner, outer), nn.Linear(outer, outer)
    return pair


class HeliosDiT(nn.Module):
    """The transformer. What does not change from step to step is computed by its own method and passed in:

    `embed_text` (once per prompt), `modulation` (once per timestep), `rope` (once per stage size), `embed_history`
    (once per chunk); `forward` is one model call.

    It is built on the meta device, before its weights are read. `randn`, `normal_` and quotients there make PyTorch
    import its compiler, which takes seconds, so that nothing here is made of them.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        c, width, patch = config.in_channels, config.width, config.patch_size
        self.patch_embedding = nn.Conv3d(c, width, patch, patch)
        self.patch_short = nn.Conv3d(c, width, patch, patch)
        self.patch_mid = nn.Conv3d(c, width, _times(2, patch), _times(2, patch))
        self.patch_long = nn.Conv3d(c, width, _times(4, patch), _times(4, patch))
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out: Any = nn.Module()
        self.norm_out.scale_shift_table = modulation_table(2, width)
        self.proj_out = nn.Linear(width, config.out_channels * math.prod(patch))
        self.walk: Callable[[], Iterable[Block]] | None = None
        self.walk_for_prompts: Callable[[], Iterable[Block]] | None = None

    def visit(self) -> Iterable[Block]:
        """Yield the blocks in order, as a model call needs them. Where `walk` is set they stream: the matrices of a
        block are gone once the next one is taken."""
        return self.blocks if self.walk is None else self.walk()

    def visit_for_prompts(self) -> Iterable[Block]:
        """Yield the blocks in order, with the matrices for keys and values of prompts, and maybe no others."""
        return self.blocks if self.walk_for_prompts is None else self.walk_for_prompts()

    def use_attention(self, choice: Choice, in_8_bits: Choice | None = None) -> None:
        """Have `choice` decide what computes attention, for self-attention `in_8_bits` if there is one."""
        for block in self.blocks:
            block.attn1.choice, block.attn2.choice = in_8_bits or choice, choice

    def join_projections(self) -> None:
        """Prepare for one product of queries, keys and values instead of three, where kernels run that work on it.

        Call it once, with the weights where they will stay.
        """
        if kernels.backend().chip:
            for block in self.blocks:
                block.attn1.join()

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype: that of the parameters outside the float32 islands, unless `compute_dtype` is set.

        Training sets it: its parameters are float32, and each product rounds those that it takes.
        """
        return self.compute_dtype or self.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    def embed_text(self, rows_BKE: Tensor) -> TextContext:
        """Return keys and values for every block, of `rows_BKE`, [B, K, text_dim]: encoder outputs of K <= 512 tokens.

        The model was trained on 512 rows, the rest zero and unmasked. Equal rows give equal keys and values, so one
        row with the log of their number added to its logit stands for all of them, exactly. Rows behind them, on a GPU,
        are left out of every attention: they are there so that prompts come in a few lengths.
        """
        pads = MAX_TEXT_TOKENS - rows_BKE.shape[1]
        biases = pad_biases(pads, self.dtype)
        if biases and rows_BKE.is_cuda and not torch.is_grad_enabled():
            known = rows_BKE.shape[1] + len(biases)
            biases += [LEFT_OUT] * (held_keys(known) - known)
        rows = F.pad(rows_BKE.to(self.dtype), (0, 0, 0, len(biases)))
        embedded = self.condition_embedder.text(rows)
        keys, values = zip(*(block.attn2.key_value(embedded) for block in self.visit_for_prompts()), strict=True)
        bias = torch.tensor([0.0] * rows_BKE.shape[1] + biases, device=rows.device) if biases else None
        return TextContext(torch.stack(keys), torch.stack(values), bias)

    def modulation(self, timestep_B: Tensor) -> Modulation:
        """Return the rows for the [B] timesteps (0..1000; whole numbers in pyramid models)."""
        embedding, rows = self.condition_embedder.time(timestep_B, self.dtype)
        history = rows
        if self.config.zero_history_timestep:
            history = self.condition_embedder.time(torch.zeros_like(timestep_B[:1]), self.dtype)[1].expand_as(rows)
        tables = torch.stack([block.scale_shift_table[0] for block in self.blocks])  # [L, 6, E] float32
        blocks = tables[:, None] + torch.stack([history, rows], dim=1)[:, None].float()
        return Modulation(blocks, self.norm_out.scale_shift_table + embedding[:, None].float())

    def patchify(self, conv: nn.Conv3d, latents_BCTHW: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return tokens [B, S, E], or `rows` of them, by one of the patch layers.

        Patches do not overlap, so that the convolution is one product of them. It is written as that: oneDNN's bfloat16
        convolution is wrong for the larger patches on CPUs with AMX.
        """
        patch = conv.kernel_size
        x = _pad_to(latents_BCTHW.to(self.dtype), patch)
        grid = [(size // step, step) for size, step in zip(x.shape[2:], patch, strict=True)]
        x = x.reshape(*x.shape[:2], *itertools.chain(*grid))  # [B, C, T, p_t, H, p_h, W, p_w]
        patches = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)  # as conv.weight has them: C, then cells
        return linear(patches[:, rows], conv.weight.flatten(1), conv.bias)

    def embed_history(self, long: Tensor, mid: Tensor, short: Tensor) -> Tensor:
        """Turn latents [B, C, T, H, W] of the three terms, `short` being anchor and newest, into [B, M, E] tokens."""
        terms = ((self.patch_long, long), (self.patch_mid, mid), (self.patch_short, short))
        return torch.cat([self.patchify(conv, latents) for conv, latents in terms], dim=1)

    def rope(self, history_grid: tuple[int, int], noisy_grid: tuple[int, int], passed: int = 0) -> Tensor:
        """Return the rotations of all rows, [S, D/2, 2] float32, for grids of (rows, columns) in patches.

        All but the anchor's are `passed` latent frames on, which is 0 in every chunk of the published models.

        The noisy grid of a coarse stage counts from 0 by 1, as the fine one does. Mid and long history take the mean
        of cos and sin over the cells that one token covers, not the cos of the mean position.
        """
        start = 1 + passed  # 0 is the anchor
        long = range(start, start + LONG_TERM)
        mid = range(long.stop, long.stop + MID_TERM)
        newest = range(mid.stop, mid.stop + SHORT_TERM)
        noisy = range(newest.stop, newest.stop + LATENTS_PER_CHUNK)
        parts = [
            self._pooled_waves(long, history_grid, 4),
            self._pooled_waves(mid, history_grid, 2),
            self._waves([0, *newest], history_grid).flatten(0, 2),
            self._waves(noisy, noisy_grid).flatten(0, 2),
        ]
        return torch.cat(parts).to(self.device)

    def _waves(self, frames: Iterable[int], grid: tuple[int, int]) -> Tensor:
        """Return (cos, sin) at each (frame, row, column), [T, H, W, D/2, 2]; float32 angles: bfloat16 ends at 256."""
        axes = [torch.tensor(list(frames)), torch.arange(grid[0]), torch.arange(grid[1])]
        angles = []
        for axis, (position, dim) in enumerate(zip(axes, self.config.rope_dim, strict=True)):
            frequency = 1.0 / self.config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
            shape = [1, 1, 1, -1]
            shape[axis] = len(position)
            angle = (position.float()[:, None] * frequency).view(shape)
            angles.append(angle.expand(len(axes[0]), grid[0], grid[1], -1))
        angle = torch.cat(angles, dim=-1)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    def _pooled_waves(self, frames: Iterable[int], grid: tuple[int, int], window: int) -> Tensor:
        waves = self._waves(frames, grid).flatten(3).permute(3, 0, 1, 2)[None]
        pooled = F.avg_pool3d(_pad_to(waves, (window,) * 3), window)[0]
        return pooled.permute(1, 2, 3, 0).flatten(0, 2).unflatten(-1, (-1, 2))

    def empty_past(self) -> tuple[Past, ...]:
        """Return what calls leave keys and values of their history rows in."""
        return tuple(Past() for _ in self.blocks)

    def forward(
        self,
        noisy_BCTHW: Tensor,
        history_BME: Tensor,
        mods: Modulation,
        rope: Tensor,
        text: TextContext,
        past: tuple[Past, ...] | None = None,
    ) -> Tensor:
        """Predict the flow (noise - x0 of the stage), [B, C, T, H, W] in the compute dtype."""
        return self.forward_all([Call(noisy_BCTHW, history_BME, mods, rope, text, past)])[0]

    def forward_all(self, calls: Sequence[Call]) -> list[Tensor]:
        """Return the flows of several calls in one walk over the blocks; each equals that of a separate call."""
        streams = [self.begin(call) for call in calls]
        self.advance_all(calls, streams)
        return [self.flow(call, self.project(rows)) for call, rows in zip(calls, streams, strict=True)]

    def begin(self, call: Call, rows: slice = slice(None)) -> Rows:
        """Return the stream before the first block: all history rows of `call`, and `rows` of its noisy ones."""
        x, split = self.enter(call, rows), call.history_BME.shape[1]
        return Rows(x, modulated_norm(self._reader(0), x, *call.mods.norm(0), split, self.config.eps))

    def _reader(self, index: int) -> Layer:
        """Return the layer that multiplies the norm before block `index`, or after the last block."""
        return self.blocks[index].attn1.to_q if index < len(self.blocks) else self.proj_out

    def enter(self, call: Call, rows: slice = slice(None)) -> Tensor:
        """Return the stream [B, S, E] before the first block."""
        return torch.cat([call.history_BME, self.patchify(self.patch_embedding, call.noisy_BCTHW, rows)], dim=1)

    def advance_all(self, calls: Sequence[Call], streams: Sequence[Rows]) -> None:
        """Take the streams of several calls through all blocks, in one walk over them."""
        last = len(self.blocks) - 1
        for i, block in enumerate(self.visit()):
            for call, rows in zip(calls, streams, strict=True):
                mods, split = call.mods.blocks[:, i], call.history_BME.shape[1]
                context = (call.text.keys[i], call.text.values[i], call.text.bias)
                rows.past = None if call.past is None else call.past[i]
                norm, then = call.mods.norm(i + 1), self._reader(i + 1)
                block.advance(rows, mods, call.rope, context, split, norm, then, noisy_only=i == last)

    def project(self, rows: Rows) -> Tensor:
        """Return the patches [B, S, P] that noisy rows stand for after the last block."""
        u = rows.take_norm()
        assert isinstance(u, Tensor)
        return _apply(self.proj_out, u)

    def leave(self, call: Call, x: Tensor) -> Tensor:
        """Return the flow, [B, C, T, H, W], from the noisy rows after the last block."""
        u = ops.modulated_norm(x, *call.mods.norm(len(self.blocks)), 0, self.config.eps)
        return self.flow(call, _apply(self.proj_out, u))

    def grid(self, call: Call) -> list[int]:
        """Return frames, rows and columns of the noisy tokens."""
        return [size // step for size, step in zip(call.noisy_BCTHW.shape[2:], self.config.patch_size, strict=True)]

    def flow(self, call: Call, patches_BSP: Tensor) -> Tensor:
        """Return the flow, [B, C, T, H, W], that patches of all noisy rows make."""
        return self._unpatchify(patches_BSP, self.grid(call))

    def _unpatchify(self, x_BSP: Tensor, grid: Sequence[int]) -> Tensor:
        """Channels are innermost within a patch: (p_t, p_h, p_w, C)."""
        p_t, p_h, p_w = self.config.patch_size
        x = x_BSP.unflatten(1, tuple(grid)).unflatten(-1, (p_t, p_h, p_w, -1))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _times(factor: int, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    return patch[0] * factor, patch[1] * factor, patch[2] * factor


def _pad_to(x_BCTHW: Tensor, window: tuple[int, ...]) -> Tensor:
    """Repeat the last frame, row and column up to multiples of `window`."""
    t, h, w = (-size % step for size, step in zip(x_BCTHW.shape[2:], window, strict=True))
    return F.pad(x_BCTHW, (0, w, 0, h, 0, t), mode="replicate") if t or h or w else x_BCTHW


def pad_biases(count: int, dtype: torch.dtype) -> list[float]:
    """Return logit biases whose exponentials add up to `count` within 1e-4 of it, each exact in `dtype`.

    One bias, ln(count), in float32. bfloat16 would round ln(500) by 0.3 %, which a second row makes up for.
    """
    biases, left = [], float(count)
    while left > 1e-4 * count:
        bias = torch.tensor(math.log(left), dtype=dtype)
        if bias.double().exp().item() > left * (1 + 1e-6):
            bias = torch.nextafter(bias, torch.tensor(-math.inf, dtype=dtype))
        biases.append(bias.item())
        left -= bias.double().exp().item()
    return biases
