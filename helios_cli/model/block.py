"""A block of the Helios transformer: self-attention over all rows, cross-attention to the prompt, feed-forward.

Shapes: B batch, S rows (history rows first, then the noisy ones), E width, N heads, D head size. Parameter names are
those of the published checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

import helios_kernels as kernels
from helios_cli.architecture import DiTConfig
from helios_cli.model.attention import USUAL, attention
from helios_cli.model.fp8 import (
    Fp8,
    Fp8Linear,
    Layer,
    gated_residual_modulated_norm,
    modulated_norm,
    multiply,
    parameter_names,
    project,
    residual_modulated_norm,
)
from helios_cli.model.ops import (
    gated_residual,
    gated_residual_layer_norm,
    layer_norm,
    rms_norm_rope,
    side_by_side,
)

if TYPE_CHECKING:
    from helios_cli.model.sharded import Share

MAX_HISTORY_SCALE = 10.0
"""Largest factor that a checkpoint with `is_amplify_history` puts on history keys."""


@dataclass
class Past:
    """Keys and values of the history rows in one block, [B, M, N, D]: those that a call has computed, for calls without
    these rows. None before."""

    keys: Tensor | None = None
    values: Tensor | None = None

    def joined(self, k: Tensor, v: Tensor, split: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of all rows. Those of the first `split` rows, if there are any, are kept; without
        any, the kept ones come before."""
        if split:
            # Copies: as views they would hold queries, keys and values of all rows.
            self.keys, self.values = k[:, :split].clone(), v[:, :split].clone()
            return k, v
        assert self.keys is not None and self.values is not None, "a call with history rows comes first"
        return torch.cat([self.keys, k], dim=1), torch.cat([self.values, v], dim=1)


@dataclass
class Rows:
    """The stream of one call between two blocks.

    Attributes:
        x: [B, S, E].
        u: its norm, as what comes next multiplies it; None once that has begun, so that its memory is free.
        share: where other ranks hold the rest of the call's rows, how to attend over all of them.
        past: keys and values of history rows that pass from call to call, in the block that comes next.
    """

    x: Tensor
    u: Tensor | Fp8 | None
    share: Share | None = None
    past: Past | None = None

    def take_norm(self) -> Tensor | Fp8:
        u, self.u = self.u, None
        assert u is not None
        return u


class RMSNorm(nn.Module):
    """Holds the weight; `ops.rms_norm_rope` computes, over all heads at once."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    """The projections of one attention, and the `choice` of what computes it; `norm_q` and `norm_k` span all heads."""

    def __init__(self, config: DiTConfig, *, amplify: bool = False) -> None:
        super().__init__()
        width = config.width
        self.heads, self.eps = config.num_attention_heads, config.eps
        self.choice = USUAL
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out: Any = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)
        if amplify:
            self.history_key_scale = nn.Parameter(
                torch.ones(self.heads if config.history_scale_mode == "per_head" else 1)
            )

    def query(self, x_BSE: Tensor | Fp8, rope: Tensor | None = None) -> Tensor:
        q = project(self.to_q, x_BSE)
        return rms_norm_rope(q, self.norm_q.weight, rope, self.heads, self.eps)

    def key_value(self, x_BSE: Tensor | Fp8, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return keys and values of the same rows; where kernels run and `join` was called, from one product."""
        joined = self._product(x_BSE, self.to_k, self.to_v)
        if joined is not None:
            slices = joined.unflatten(-1, (2, -1))
            kernels.qk_norm_rope(slices[:, :, :1], self.norm_k.weight[None], rope, self.heads, self.eps)
            return slices.unflatten(-1, (self.heads, -1)).unbind(2)
        k, v = project(self.to_k, x_BSE), project(self.to_v, x_BSE)
        return rms_norm_rope(k, self.norm_k.weight, rope, self.heads, self.eps), v.unflatten(-1, (self.heads, -1))

    @torch.no_grad()
    def join(self) -> None:
        """Move the weights of queries, keys and values next to each other, for one product instead of three, and those
        of the norms for one kernel."""
        layers = (self.to_q, self.to_k, self.to_v)
        alike = [[getattr(layer, name) for layer in layers] for name in parameter_names(self.to_q)]
        for parameters in (*alike, [self.norm_q.weight, self.norm_k.weight]):
            for parameter, piece in zip(parameters, torch.cat(parameters).chunk(len(parameters)), strict=True):
                parameter.data = piece

    def query_key_value(self, x_BSE: Tensor | Fp8, rope: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of the rows from `first` on, keys and values of all rows. They come from one product if
        `first` is 0, kernels run and `join` was called."""
        x = Fp8.of(x_BSE) if isinstance(self.to_q, Fp8Linear) and isinstance(x_BSE, Tensor) else x_BSE
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

    def _product(self, x: Tensor | Fp8, *layers: Layer) -> Tensor | None:
        """Return one product for all the layers, where kernels run on its slices and the weights are side by side."""
        if not kernels.runs(x.values if isinstance(x, Fp8) else x, "qk_norm_rope"):
            return None
        joined = [side_by_side(*(getattr(layer, name) for layer in layers)) for name in parameter_names(layers[0])]
        if any(parameter is None for parameter in joined):
            return None
        return multiply(layers[0], x, *cast("list[Tensor]", joined))

    def amplify_history(self, k_BSND: Tensor, split: int) -> Tensor:
        """Multiply history keys by a learnt factor between 1 and 10, if the checkpoint has one."""
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
        up: Any = nn.Module()
        up.proj = nn.Linear(width, hidden)
        self.net: Any = nn.ModuleList([up, nn.Identity(), nn.Linear(hidden, width)])

    @property
    def up(self) -> Layer:
        return self.net[0].proj

    def forward(self, x: Tensor | Fp8) -> Tensor:
        up, down = self.up, self.net[2]
        if isinstance(down, Fp8Linear):
            return down(Fp8.of(up(x), gelu=True))
        return project(down, project(up, x, gelu=True))


def modulation_table(rows: int, width: int) -> nn.Parameter:
    """Return a table [1, rows, width] of variance 1 / width."""
    bound = (3 / width) ** 0.5
    return nn.Parameter(torch.empty(1, rows, width).uniform_(-bound, bound))


class Block(nn.Module):
    """Self-attention over all rows, cross-attention of the noisy rows to the prompt, feed-forward."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps, self.guide_noisy_only = config.eps, config.guidance_cross_attn
        self.attn1 = Attention(config, amplify=config.is_amplify_history)
        self.attn2 = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(config.width, config.ffn_dim)
        self.scale_shift_table = modulation_table(6, config.width)

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
        """Apply the block. `mods` is [B or 1, 2, 6, E]; `split` the number of history rows.

        With `noisy_only` (the last block) history rows give their keys and values and end there: the result has the
        noisy rows alone.
        """
        shift, scale = mods[:, :, 0], mods[:, :, 1]
        rows = Rows(x_BSE, modulated_norm(self.attn1.to_q, x_BSE, scale, shift, split, self.eps))
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
        then: Layer,
        *,
        noisy_only: bool = False,
    ) -> None:
        """Apply the block and the norm after it, with (scale, shift) `norm`, which `then` multiplies: one pass where
        kernels run.

        For sampling. Where gradients are recorded, a norm that passes from block to block would have to be kept.
        """
        y, split = self._last_summand(rows, mods, rope, text, split, noisy_only=noisy_only)
        rows.x, rows.u = gated_residual_modulated_norm(then, rows.x, y, mods[:, :, 5], *norm, split, self.eps)

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
        """Return the output of the feed-forward, still to be gated and added to `rows.x`, and its history rows."""
        _, _, gate1, shift2, scale2, _ = mods.unbind(2)
        a = self._attend(rows, rope, split, noisy_only=noisy_only)
        if noisy_only:
            rows.x, split = rows.x[:, split:], 0
        if self.guide_noisy_only and isinstance(self.norm2, nn.LayerNorm):
            norm = self.norm2
            rows.x, c = gated_residual_layer_norm(rows.x, a, gate1, norm.weight, norm.bias, split, self.eps)
            a = self.attn2.out(attention(self.attn2.query(c), *text, self.attn2.choice))
            rows.x, u = residual_modulated_norm(self.ffn.up, rows.x, a, scale2, shift2, split, self.eps)
        else:
            rows.x = self._cross(gated_residual(rows.x, a, gate1, split), text, split)
            u = modulated_norm(self.ffn.up, rows.x, scale2, shift2, split, self.eps)
        return self.ffn(u), split

    def _attend(self, rows: Rows, rope: Tensor, split: int, *, noisy_only: bool) -> Tensor:
        """Compute self-attention, for the noisy rows alone with `noisy_only`. Queries, keys and values are freed."""
        q, k, v = self.attn1.query_key_value(rows.take_norm(), rope, split if noisy_only else 0)
        k = self.attn1.amplify_history(k, split)
        if rows.share is not None:
            return self.attn1.out(rows.share.attention(q, k, v, self.attn1.choice, noisy_only=noisy_only))
        if rows.past is not None:
            k, v = rows.past.joined(k, v, split)
        return self.attn1.out(attention(q, k, v, None, self.attn1.choice))

    def _cross(self, x_BSE: Tensor, text: tuple[Tensor, Tensor, Tensor | None], split: int) -> Tensor:
        guided = x_BSE[:, split:] if self.guide_noisy_only else x_BSE
        c = guided
        if isinstance(self.norm2, nn.LayerNorm):
            c = layer_norm(guided, self.norm2.weight, self.norm2.bias, self.eps).to(x_BSE.dtype)
        a = self.attn2.out(attention(self.attn2.query(c), *text, self.attn2.choice))
        if not torch.is_grad_enabled():
            guided += a  # a view of the stream: the history rows stay where they are
            return x_BSE
        return torch.cat([x_BSE[:, :split], guided + a], dim=1) if self.guide_noisy_only else guided + a
