"""The sizes of a model's three networks that its costs follow from, read from their configs without torch.

Defaults are those of the published 14B model, so a model that is not downloaded can be planned with. Whether a variant
is supported is for the modules in `model/` to say; here values only have to be numbers of the right kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self


class _FromConfig:
    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """From a component's `config.json`. ValueError names the key whose value is no count."""
        values = {}
        for field in fields(cls):
            value = config.get(UPSTREAM_NAMES.get(field.name, field.name))
            if value is None:
                continue
            if not _alike(value, field.default):
                raise ValueError(f"`{field.name}` cannot be {value!r}")
            values[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


UPSTREAM_NAMES = {"temporal_downsample": "temperal_downsample"}


def _alike(value: object, default: object) -> bool:
    """Whether `value` is of the default's kind: a switch, a count, or a list of them."""
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and bool(value) and all(_alike(item, default[0]) for item in value)
    return type(value) is type(default) and (isinstance(value, bool) or value > 0)


@dataclass(frozen=True)
class DiTShape(_FromConfig):
    """`transformer/config.json`."""

    patch_size: tuple[int, ...] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    guidance_cross_attn: bool = True

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def fp32_parameters(self) -> int:
        """Those kept in float32 in every dtype: the time embedder, the modulation tables, the affine norms."""
        time_embedder = (self.freq_dim + 1) * self.width + (self.width + 1) * self.width
        tables = (6 * self.num_layers + 2) * self.width
        norms = 2 * self.num_layers * self.width if self.cross_attn_norm else 0
        return time_embedder + tables + norms

    @property
    def block_matrices(self) -> int:
        """Parameters of a block that are in matrices: two attentions and the feed-forward."""
        return 8 * self.width**2 + 2 * self.width * self.ffn_dim

    @property
    def fp8_block_parameters(self) -> int:
        """Those of them that `--quant fp8` rounds: self-attention and the feed-forward."""
        return 4 * self.width**2 + 2 * self.width * self.ffn_dim


@dataclass(frozen=True)
class TextShape(_FromConfig):
    """`text_encoder/config.json`."""

    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64

    @property
    def float16_fp32_parameters(self) -> int:
        """Those kept in float32 when the encoder runs in float16: the second product of each feed-forward."""
        return self.num_layers * self.d_ff * self.d_model

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer that are in matrices, without its table of distances."""
        return 4 * self.d_model * self.num_heads * self.d_kv + 3 * self.d_model * self.d_ff


@dataclass(frozen=True)
class VAEShape(_FromConfig):
    """`vae/config.json`."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 3
    out_channels: int = 3

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels by level, finest first."""
        return tuple(self.base_dim * mult for mult in self.dim_mult)


def patch_cells(dit: DiTShape) -> int:
    """Latent cells in one noisy token."""
    return math.prod(dit.patch_size)
