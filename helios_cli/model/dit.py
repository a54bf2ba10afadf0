"""The Helios diffusion transformer: one stream of history and noisy tokens, predicting the flow of the noisy ones.

What is unusual about it:
- History is clean latents, patchified three times coarser the older it is, placed before the noisy tokens in the same
  self-attention: [ long | mid | anchor, newest | noisy ]. Nothing is causal, nothing is masked.
- Positions are relative: the same frame indices in every chunk, so a film of any length looks like its first second.
- History is told timestep 0, the noisy tokens the real one: two modulation rows, chosen by row.
- The prompt guides the noisy tokens only; history rows pass by the cross-attention.

Shapes: B batch, C latent channels, T latent frames, H W latent height and width (pixels / 8), S tokens, M history
tokens, E width, N heads, D head size, L layers. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helios_kernels as kernels
from helios_cli.model.attention import attention
from helios_cli.model.fp8 import Fp8, Fp8Linear, parameter_names, product, project
from helios_cli.model.ops import (
    gated_residual,
    gated_residual_layer_norm,
    gated_residual_modulated_norm,
    layer_norm,
    linear,
    modulated_norm,
    product_dtype,
    residual_modulated_norm,
    rms_norm_rope,
    side_by_side,
)
from helios_cli.units import LATENTS_PER_CHUNK, LONG_TERM, MAX_TEXT_TOKENS, MID_TERM, SHORT_TERM

MAX_HISTORY_SCALE = 10.0
"""Largest factor that a checkpoint with `is_amplify_history` puts on history keys."""

FP32_ISLANDS = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "history_key_scale"})
"""Path components of parameters that stay float32 whatever the compute dtype."""


@dataclass(frozen=True)
class DiTConfig:
    """`transformer/config.json`. Defaults are the 14B model's."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    is_amplify_history: bool = False
    history_scale_mode: str = "per_head"

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: dict) -> DiTConfig:
        """Reads a checkpoint's config. Raises ValueError for a variant that this file does not compute."""
        fixed = {
            "qk_norm": "rms_norm_across_heads",
            "added_kv_proj_dim": None,
            "has_multi_term_memory_patch": True,
        }
        for key, value in fixed.items():
            if config.get(key, value) != value:
                raise ValueError(f"`{key}` is {config[key]!r}, only {value!r} is supported")
        known = {field.name for field in fields(cls)}
        unknown = sorted(key for key in config if key not in known | set(fixed) and not key.startswith("_"))
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
        if values.get("out_channels", 0) is None:
            values["out_channels"] = values.get("in_channels", cls.in_channels)
        made = cls(**values)
        if sum(made.rope_dim) != made.attention_head_dim:
            raise ValueError(f"`rope_dim` {made.rope_dim} does not add up to the head size {made.attention_head_dim}")
        return made


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
    """The inputs of one model call, as `HeliosDiT.forward` takes them."""

    noisy_BCTHW: Tensor
    history_BME: Tensor
    mods: Modulation
    rope: Tensor
    text: TextContext


@dataclass
class Rows:
    """The stream of one call between two blocks.

    Attributes:
        x: [B, S, E].
        u: its norm, which the coming block attends over; None once that has begun, so that nothing keeps it.
    """

    x: Tensor
    u: Tensor | None

    def take_norm(self) -> Tensor:
        u, self.u = self.u, None
        return u


class RMSNorm(nn.Module):
    """Holds the weight; `ops.rms_norm_rope` computes, over all heads at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    """Projections of one attention; `norm_q` and `norm_k` span all heads."""

    def __init__(self, config: DiTConfig, *, amplify: bool = False) -> None:
        super().__init__()
        width = config.width
        self.heads, self.eps = config.num_attention_heads, config.eps
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)
        if amplify:
            self.history_key_scale = nn.Parameter(
                torch.ones(self.heads if config.history_scale_mode == "per_head" else 1)
            )

    def query(self, x_BSE: Tensor | Fp8, rope: Tensor | None = None) -> Tensor:
        q = project(self.to_q, x_BSE)
        return rms_norm_rope(q, self.norm_q.weight, rope, self.heads, self.eps)

    def key_value(self, x_BSE: Tensor | Fp8, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Both of the same rows; where kernels run and `join` was called, of one product."""
        joined = self._product(x_BSE, self.to_k, self.to_v)
        if joined is not None:
            slices = joined.unflatten(-1, (2, -1))
            kernels.qk_norm_rope(slices[:, :, :1], self.norm_k.weight[None], rope, self.heads, self.eps)
            return slices.unflatten(-1, (self.heads, -1)).unbind(2)
        k, v = project(self.to_k, x_BSE), project(self.to_v, x_BSE)
        return rms_norm_rope(k, self.norm_k.weight, rope, self.heads, self.eps), v.unflatten(-1, (self.heads, -1))

    @torch.no_grad()
    def join(self) -> None:
        """Moves the weights of queries, keys and values next to each other, for one product instead of three, and those
        of the norms for one kernel."""
        layers = (self.to_q, self.to_k, self.to_v)
        alike = [[getattr(layer, name) for layer in layers] for name in parameter_names(self.to_q)]
        for parameters in (*alike, [self.norm_q.weight, self.norm_k.weight]):
            for parameter, piece in zip(parameters, torch.cat(parameters).chunk(len(parameters)), strict=True):
                parameter.data = piece

    def query_key_value(self, x_BSE: Tensor, rope: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the rows from `first` on, keys and values of all. Of one product where all rows ask, kernels run
        and `join` was called."""
        x = Fp8.of(x_BSE) if isinstance(self.to_q, Fp8Linear) else x_BSE
        if first:
            asking = x.rows(first) if isinstance(x, Fp8) else x[:, first:]
            return self.query(asking, rope[..., first:, :, :]), *self.key_value(x, rope)
        joined = self._product(x, self.to_q, self.to_k, self.to_v)
        norms = side_by_side(self.norm_q.weight, self.norm_k.weight)
        if joined is None or norms is None:
            return self.query(x, rope), *self.key_value(x, rope)
        slices = joined.unflatten(-1, (3, -1))
        kernels.qk_norm_rope(slices[:, :, :2], norms.unflatten(0, (2, -1)), rope, self.heads, self.eps)
        return slices.unflatten(-1, (self.heads, -1)).unbind(2)

    def _product(self, x: Tensor | Fp8, *layers: nn.Linear | Fp8Linear) -> Tensor | None:
        """One product for all the layers, where kernels run on its slices and the weights are side by side."""
        if not kernels.runs(x.values if isinstance(x, Fp8) else x):
            return None
        joined = [side_by_side(*(getattr(layer, name) for layer in layers)) for name in parameter_names(layers[0])]
        if any(parameter is None for parameter in joined):
            return None
        return (product if isinstance(x, Fp8) else linear)(x, *joined)

    def amplify_history(self, k_BSND: Tensor, split: int) -> Tensor:
        """Multiplies history keys by a learnt factor between 1 and 10, if the checkpoint has one."""
        if not hasattr(self, "history_key_scale") or split == 0:
            return k_BSND
        factor = 1 + torch.sigmoid(self.history_key_scale) * (MAX_HISTORY_SCALE - 1)
        history = (k_BSND[:, :split] * factor[:, None]).to(k_BSND.dtype)
        return torch.cat([history, k_BSND[:, split:]], dim=1)

    def out(self, x_BSE: Tensor) -> Tensor:
        return project(self.to_out[0], x_BSE)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        up = nn.Module()
        up.proj = nn.Linear(width, hidden)
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        up, down = self.net[0].proj, self.net[2]
        if isinstance(down, Fp8Linear):
            return down(Fp8.of(up(x), gelu=True))
        return linear(linear(x, up.weight, up.bias, gelu=True), down.weight, down.bias)


class Block(nn.Module):
    """Self-attention over all rows, cross-attention of the noisy rows to the prompt, feed-forward."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps, self.guide_noisy_only = config.eps, config.guidance_cross_attn
        self.attn1 = Attention(config, amplify=config.is_amplify_history)
        self.attn2 = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(config.width, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, config.width) / config.width**0.5)

    def forward(
        self,
        x_BSE: Tensor,
        mods: Tensor,
        rope: Tensor,
        text: tuple[Tensor, Tensor, Tensor | None],
        split: int,
        *,
        noisy_only: bool = False,
    ) -> Tensor:
        """One block. `mods` is [B or 1, 2, 6, E]; `split` the number of history rows.

        With `noisy_only` (the last block) history rows give their keys and values and end there: the result has the
        noisy rows alone.
        """
        shift, scale = mods[:, :, 0], mods[:, :, 1]
        rows = Rows(x_BSE, modulated_norm(x_BSE, scale, shift, split, self.eps))
        y, split = self._last_summand(rows, mods, rope, text, split, noisy_only=noisy_only)
        return gated_residual(rows.x, y, mods[:, :, 5], split)

    def advance(
        self,
        rows: Rows,
        mods: Tensor,
        rope: Tensor,
        text: tuple[Tensor, Tensor, Tensor | None],
        split: int,
        norm: tuple[Tensor, Tensor],
        *,
        noisy_only: bool = False,
    ) -> None:
        """`forward` and the norm behind it, whose (scale, shift) `norm` is: one pass over the stream where kernels run.

        For sampling. Where gradients are recorded, a norm that passes from block to block would have to be kept.
        """
        y, split = self._last_summand(rows, mods, rope, text, split, noisy_only=noisy_only)
        rows.x, rows.u = gated_residual_modulated_norm(rows.x, y, mods[:, :, 5], *norm, split, self.eps)

    def _last_summand(
        self,
        rows: Rows,
        mods: Tensor,
        rope: Tensor,
        text: tuple[Tensor, Tensor, Tensor | None],
        split: int,
        *,
        noisy_only: bool,
    ) -> tuple[Tensor, int]:
        """What the feed-forward makes, which is still to be gated and added to `rows.x`, and its history rows."""
        _, _, gate1, shift2, scale2, _ = mods.unbind(2)
        a = self._attend(rows.take_norm(), rope, split, noisy_only=noisy_only)
        if noisy_only:
            rows.x, split = rows.x[:, split:], 0
        if self.guide_noisy_only and isinstance(self.norm2, nn.LayerNorm):
            norm = self.norm2
            rows.x, c = gated_residual_layer_norm(rows.x, a, gate1, norm.weight, norm.bias, split, self.eps)
            a = self.attn2.out(attention(self.attn2.query(c), *text))
            rows.x, u = residual_modulated_norm(rows.x, a, scale2, shift2, split, self.eps)
        else:
            rows.x = self._cross(gated_residual(rows.x, a, gate1, split), text, split)
            u = modulated_norm(rows.x, scale2, shift2, split, self.eps)
        return self.ffn(u), split

    def _attend(self, u_BSE: Tensor, rope: Tensor, split: int, *, noisy_only: bool) -> Tensor:
        """Self-attention, of the noisy rows alone with `noisy_only`. Queries, keys and values end with the call."""
        q, k, v = self.attn1.query_key_value(u_BSE, rope, split if noisy_only else 0)
        return self.attn1.out(attention(q, self.attn1.amplify_history(k, split), v))

    def _cross(self, x_BSE: Tensor, text: tuple[Tensor, Tensor, Tensor | None], split: int) -> Tensor:
        guided = x_BSE[:, split:] if self.guide_noisy_only else x_BSE
        c = guided
        if isinstance(self.norm2, nn.LayerNorm):
            c = layer_norm(guided, self.norm2.weight, self.norm2.bias, self.eps).to(x_BSE.dtype)
        a = self.attn2.out(attention(self.attn2.query(c), *text))
        if not torch.is_grad_enabled():
            guided += a  # a view of the stream: the history rows stay where they are
            return x_BSE
        return torch.cat([x_BSE[:, :split], guided + a], dim=1) if self.guide_noisy_only else guided + a


class ConditionEmbedder(nn.Module):
    """Timestep and prompt to the model's width."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = _two_linears(config.freq_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = _two_linears(config.text_dim, config.width)

    def time(self, timestep_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Timesteps on the 0..1000 scale -> (embedding [B, E], projection [B, 6, E]) in `dtype`."""
        half = self.freq_dim // 2
        frequency = torch.exp(-math.log(10000) / half * torch.arange(half, device=timestep_B.device))
        angle = timestep_B.float()[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.time_embedder.linear_1.weight.dtype)
        hidden = F.silu(self.time_embedder.linear_1(wave))
        embedding = self.time_embedder.linear_2(hidden).to(dtype)
        weight, bias = self.time_proj.weight.to(dtype), self.time_proj.bias.to(dtype)
        return embedding, F.linear(F.silu(embedding), weight, bias).unflatten(-1, (6, -1))

    def text(self, rows_BKE: Tensor) -> Tensor:
        first, second = self.text_embedder.linear_1, self.text_embedder.linear_2
        hidden = linear(rows_BKE, first.weight, first.bias, gelu=True)
        return linear(hidden, second.weight, second.bias)


def _two_linears(inner: int, outer: int) -> nn.Module:
    pair = nn.Module()
    pair.linear_1, pair.linear_2 = nn.Linear(inner, outer), nn.Linear(outer, outer)
    return pair


class HeliosDiT(nn.Module):
    """The transformer. Everything that does not change from step to step is made by its own method and passed in:

    `embed_text` (once per prompt), `modulation` (once per timestep), `rope` (once per stage size), `embed_history`
    (once per chunk); `forward` is one model call.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        c, width, patch = config.in_channels, config.width, config.patch_size
        self.patch_embedding = nn.Conv3d(c, width, patch, patch)
        self.patch_short = nn.Conv3d(c, width, patch, patch)
        self.patch_mid = nn.Conv3d(c, width, tuple(2 * p for p in patch), tuple(2 * p for p in patch))
        self.patch_long = nn.Conv3d(c, width, tuple(4 * p for p in patch), tuple(4 * p for p in patch))
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = nn.Module()
        self.norm_out.scale_shift_table = nn.Parameter(torch.randn(1, 2, width) / width**0.5)
        self.proj_out = nn.Linear(width, config.out_channels * math.prod(patch))
        self.walk: Callable[..., Iterable[Block]] | None = None

    def visit(self, *part: str) -> Iterable[Block]:
        """The blocks in order, each to be used before the next is asked for: where `walk` is set they stream, and a
        block's matrices are there no longer. With `part` only those are whose names begin so."""
        return self.blocks if self.walk is None else self.walk(*part)

    def join_projections(self) -> None:
        """Prepares for one product of queries, keys and values instead of three, where kernels run that work on it.

        To be called once, with the weights where they will stay.
        """
        if kernels.backend().chip:
            for block in self.blocks:
                block.attn1.join()

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype: the one of the parameters outside the float32 islands, unless `compute_dtype` is another.

        Training sets that: its parameters are float32, and each product rounds those that it takes.
        """
        return self.compute_dtype or self.proj_out.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.proj_out.weight.device

    def embed_text(self, rows_BKE: Tensor) -> TextContext:
        """Keys and values of `rows_BKE`, the [B, K, text_dim] encoder outputs of K <= 512 tokens, for every block.

        The model was trained on 512 rows, the rest zero and unmasked. Equal rows give equal keys and values, so one
        row with the log of their number added to its logit stands for all of them, exactly.
        """
        pads = MAX_TEXT_TOKENS - rows_BKE.shape[1]
        biases = pad_biases(pads, self.dtype)
        rows = F.pad(rows_BKE.to(self.dtype), (0, 0, 0, len(biases)))
        embedded = self.condition_embedder.text(rows)
        keys, values = zip(
            *(block.attn2.key_value(embedded) for block in self.visit("attn2.to_k", "attn2.to_v")), strict=True
        )
        bias = torch.tensor([0.0] * rows_BKE.shape[1] + biases, device=rows.device) if biases else None
        return TextContext(torch.stack(keys), torch.stack(values), bias)

    def modulation(self, timestep_B: Tensor) -> Modulation:
        """Rows for the [B] timesteps (0..1000; whole numbers in pyramid models)."""
        embedding, rows = self.condition_embedder.time(timestep_B, self.dtype)
        history = rows
        if self.config.zero_history_timestep:
            history = self.condition_embedder.time(torch.zeros_like(timestep_B[:1]), self.dtype)[1].expand_as(rows)
        tables = torch.stack([block.scale_shift_table[0] for block in self.blocks])  # [L, 6, E] float32
        blocks = tables[:, None] + torch.stack([history, rows], dim=1)[:, None].float()
        return Modulation(blocks, self.norm_out.scale_shift_table + embedding[:, None].float())

    def patchify(self, conv: nn.Conv3d, latents_BCTHW: Tensor) -> Tensor:
        """Tokens [B, S, E] by one of the patch layers."""
        x = _pad_to(latents_BCTHW.to(self.dtype), conv.stride)
        wide = product_dtype(x)
        weight, bias = (parameter.to(x.dtype).to(wide) for parameter in (conv.weight, conv.bias))
        return F.conv3d(x.to(wide), weight, bias, conv.stride).to(x.dtype).flatten(2).transpose(1, 2)

    def embed_history(self, long: Tensor, mid: Tensor, short: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] of the three terms, `short` being anchor and newest -> [B, M, E] tokens."""
        terms = ((self.patch_long, long), (self.patch_mid, mid), (self.patch_short, short))
        return torch.cat([self.patchify(conv, latents) for conv, latents in terms], dim=1)

    def rope(self, history_grid: tuple[int, int], noisy_grid: tuple[int, int], passed: int = 0) -> Tensor:
        """Rotations of all rows, [S, D/2, 2] float32, for grids of (rows, columns) in patches. All but the anchor's are
        `passed` latent frames on, which is 0 in every chunk of the published models.

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

    def _waves(self, frames, grid: tuple[int, int]) -> Tensor:
        """(cos, sin) at every (frame, row, column): [T, H, W, D/2, 2], angles in float32 (bfloat16 stops at 256)."""
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

    def _pooled_waves(self, frames, grid: tuple[int, int], window: int) -> Tensor:
        waves = self._waves(frames, grid).flatten(3).permute(3, 0, 1, 2)[None]
        pooled = F.avg_pool3d(_pad_to(waves, (window,) * 3), window)[0]
        return pooled.permute(1, 2, 3, 0).flatten(0, 2).unflatten(-1, (-1, 2))

    def forward(
        self, noisy_BCTHW: Tensor, history_BME: Tensor, mods: Modulation, rope: Tensor, text: TextContext
    ) -> Tensor:
        """Predicted flow (noise - x0 of the stage), [B, C, T, H, W] in the compute dtype."""
        return self.forward_all([Call(noisy_BCTHW, history_BME, mods, rope, text)])[0]

    def forward_all(self, calls: Sequence[Call]) -> list[Tensor]:
        """The flows of several calls in one walk over the blocks: each value is that of a call of its own."""
        streams, last = [self._begin(call) for call in calls], len(self.blocks) - 1
        for i, block in enumerate(self.visit()):
            for call, rows in zip(calls, streams, strict=True):
                mods, split = call.mods.blocks[:, i], call.history_BME.shape[1]
                context = (call.text.keys[i], call.text.values[i], call.text.bias)
                block.advance(rows, mods, call.rope, context, split, call.mods.norm(i + 1), noisy_only=i == last)
        return [self._flow(call, rows.take_norm()) for call, rows in zip(calls, streams, strict=True)]

    def _begin(self, call: Call) -> Rows:
        x = self.enter(call)
        return Rows(x, modulated_norm(x, *call.mods.norm(0), call.history_BME.shape[1], self.config.eps))

    def enter(self, call: Call) -> Tensor:
        """The stream [B, S, E] before the first block."""
        return torch.cat([call.history_BME, self.patchify(self.patch_embedding, call.noisy_BCTHW)], dim=1)

    def leave(self, call: Call, x: Tensor) -> Tensor:
        """The flow, [B, C, T, H, W], from the noisy rows after the last block."""
        scale, shift = call.mods.norm(len(self.blocks))
        if kernels.runs(x):
            y = kernels.modulated_norm(x, scale, shift, 0, self.config.eps)
        else:
            y = torch.addcmul(shift[:, 1:], layer_norm(x, None, None, self.config.eps), 1 + scale[:, 1:]).to(self.dtype)
        return self._flow(call, y)

    def _flow(self, call: Call, u_BSE: Tensor) -> Tensor:
        grid = [size // step for size, step in zip(call.noisy_BCTHW.shape[2:], self.config.patch_size, strict=True)]
        return self._unpatchify(linear(u_BSE, self.proj_out.weight, self.proj_out.bias), grid)

    def _unpatchify(self, x_BSP: Tensor, grid: Sequence[int]) -> Tensor:
        """Channels are innermost within a patch: (p_t, p_h, p_w, C)."""
        p_t, p_h, p_w = self.config.patch_size
        x = x_BSP.unflatten(1, tuple(grid)).unflatten(-1, (p_t, p_h, p_w, -1))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _pad_to(x_BCTHW: Tensor, window: tuple[int, ...]) -> Tensor:
    """Repeats the last frame, row and column up to multiples of `window`."""
    t, h, w = (-size % step for size, step in zip(x_BCTHW.shape[2:], window, strict=True))
    return F.pad(x_BCTHW, (0, w, 0, h, 0, t), mode="replicate") if t or h or w else x_BCTHW


def pad_biases(count: int, dtype: torch.dtype) -> list[float]:
    """Logit biases whose exponentials add up to `count` within 1e-4 of it, each exact in `dtype`.

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
