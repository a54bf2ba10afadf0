"""The sizes of a model's three networks that its costs follow from. Defaults are those of the published 14B model, so a
model that is not downloaded can be planned with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from helios_cli.architecture import DiTConfig, UMT5Config, VAEConfig


@dataclass(frozen=True)
class DiTShape(DiTConfig):
    """The transformer's."""

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
class TextShape(UMT5Config):
    """The text encoder's."""

    @property
    def float16_fp32_parameters(self) -> int:
        """Those kept in float32 when the encoder runs in float16: the second product of each feed-forward."""
        return self.num_layers * self.d_ff * self.d_model

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer that are in matrices, without its table of distances."""
        return 4 * self.d_model * self.num_heads * self.d_kv + 3 * self.d_model * self.d_ff


@dataclass(frozen=True)
class VAEShape(VAEConfig):
    """The VAE's."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels by level, finest first."""
        return tuple(self.base_dim * mult for mult in self.dim_mult)


def patch_cells(dit: DiTShape) -> int:
    """Latent cells in one noisy token."""
    return math.prod(dit.patch_size)
