"""The UMT5 text encoder: prompt tokens to one row each.

Shapes: S tokens, E model width, N heads, D head size. One prompt at a time and no padding: masked padding never
reaches a real token, so leaving it out gives the same rows. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_cli.architecture import UMT5Config
from helios_cli.model.ops import linear, matmul

FP32_ISLANDS_IN_FLOAT16 = frozenset({"wo"})
"""Path components that stay float32 when the encoder runs in float16, where their products overflow."""

TIED_EMBEDDING = "encoder.embed_tokens.weight"
"""Some checkpoints store `shared.weight` a second time under this name."""


class ScaleNorm(nn.Module):
    """RMS norm in float32 with a weight, no mean, no bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x_SE: Tensor) -> Tensor:
        scale = torch.rsqrt(x_SE.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x_SE * scale).to(self.weight.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.config = config
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias = _embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x_SE: Tensor) -> Tensor:
        heads = self.config.num_heads
        q, k, v = (linear(x_SE, m.weight).unflatten(-1, (heads, -1)).transpose(0, 1) for m in (self.q, self.k, self.v))
        # T5 leaves out 1/sqrt(D): its initialisation has it.
        weights = torch.softmax((matmul(q, k.mT) + self._bias(x_SE.shape[0])).float(), dim=-1).to(x_SE.dtype)
        return linear(matmul(weights, v).transpose(0, 1).flatten(1), self.o.weight)

    def _bias(self, tokens: int) -> Tensor:
        """Return the bias [N, S, S] from the table, by the distance from query to key."""
        place = torch.arange(tokens, device=self.relative_attention_bias.weight.device)
        bucket = distance_bucket(
            place[None, :] - place[:, None],
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        return self.relative_attention_bias(bucket).permute(2, 0, 1)


def distance_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Return T5's bucket of a signed distance: half the buckets a side, half of those exact, the rest logarithmic."""
    side = buckets // 2
    exact = side // 2
    size = distance.abs()
    steps = torch.log(size.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (side - exact)
    far = (exact + steps.long()).clamp(max=side - 1)
    return torch.where(distance > 0, side, 0) + torch.where(size < exact, size, far)


class GatedFeedForward(nn.Module):
    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_SE: Tensor) -> Tensor:
        hidden = F.gelu(linear(x_SE, self.wi_0.weight), approximate="tanh") * linear(x_SE, self.wi_1.weight)
        return linear(hidden.to(self.wo.weight.dtype), self.wo.weight)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, under the names of the checkpoint: layer.0 and layer.1."""

    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        attend: Any = nn.Module()
        feed: Any = nn.Module()
        attend.SelfAttention = SelfAttention(config)
        attend.layer_norm = ScaleNorm(config.d_model, config.layer_norm_epsilon)
        feed.DenseReluDense = GatedFeedForward(config)
        feed.layer_norm = ScaleNorm(config.d_model, config.layer_norm_epsilon)
        self.layer = nn.ModuleList([attend, feed])

    def forward(self, x_SE: Tensor) -> Tensor:
        attend, feed = cast(Any, self.layer)
        x_SE = x_SE + attend.SelfAttention(attend.layer_norm(x_SE))
        return x_SE + feed.DenseReluDense(feed.layer_norm(x_SE))


def _embedding(rows: int, width: int) -> nn.Embedding:
    """Return `nn.Embedding(rows, width)`, of variance 1, without `normal_`: see `dit.HeliosDiT`."""
    return nn.Embedding.from_pretrained(torch.empty(rows, width).uniform_(-(3**0.5), 3**0.5), freeze=False)


class UMT5Encoder(nn.Module):
    def __init__(self, config: UMT5Config) -> None:
        super().__init__()
        self.shared = _embedding(config.vocab_size, config.d_model)
        self.encoder: Any = nn.Module()
        self.encoder.block = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.encoder.final_layer_norm = ScaleNorm(config.d_model, config.layer_norm_epsilon)
        self.walk: Callable[[], Iterable[Layer]] | None = None

    def forward(self, tokens_S: Tensor) -> Tensor:
        """Turn the token ids of one prompt, end token included, into [S, E] rows."""
        return self.forward_all([tokens_S])[0]

    def forward_all(self, prompts: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows of several prompts in one walk over the layers, which stream where `walk` is set."""
        streams = [self.shared(tokens_S) for tokens_S in prompts]
        for layer in self.encoder.block if self.walk is None else self.walk():
            streams = [layer(x) for x in streams]
        return [self.encoder.final_layer_norm(x) for x in streams]
