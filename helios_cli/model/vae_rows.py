"""The decoding of a chunk by several ranks, each of which makes some rows of the pictures.

A rank has the whole VAE and consecutive rows of the latents, of which it makes 8 rows of pixels each. What mixes
positions needs more than its own rows:

    3x3x3 and 2x2 convolutions    one row above and one below, from the ranks before and after; zeros at the edges
    attention                     all rows; every rank computes it for all positions, 0.3 % of the operations
    everything else               nothing: norms and shortcuts are per position, time convolutions per pixel

Rows are exchanged before a norm, which is per position, so that a row is the same on both ranks; remembered frames keep
those rows. Each exchange is two rows of a layer's input, and ranks split a clip into the same pieces, so that they
exchange in the same order. The first ranks have a row more where the rows do not divide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from helios_cli.model.causal import CausalState
from helios_cli.model.sharded import Exchange, own, shares
from helios_cli.model.vae import WanVAE, frames_to_uint8
from helios_cli.units import PIXELS_PER_CELL


class Rows(CausalState):
    """The causal state of a clip of which this rank decodes some rows. `counts`: rows of the latents of every rank."""

    has_all_rows = False

    def __init__(self, exchange: Exchange, counts: Sequence[int], piece_elements: int | None = None) -> None:
        super().__init__(piece_elements)
        self.exchange, self.counts = exchange, counts

    def with_edges(self, x_BTHWC: Tensor) -> Tensor:
        """Return x with a row above and one below, [B, T, H + 2, W, C]."""
        rank, ranks = self.exchange.rank, self.exchange.size
        B, T, H, W, C = x_BTHWC.shape
        padded = x_BTHWC.new_empty(B, T, H + 2, W, C)
        padded[:, :, 1:-1] = x_BTHWC
        # A rank gives its first row to the one before, which has it below its own, and its last to the one after.
        near = {rank - 1: (0, 0), rank + 1: (-1, -1)}
        near = {other: places for other, places in near.items() if 0 <= other < ranks}
        counts = [int(other in near) for other in range(ranks)]
        given = torch.stack([x_BTHWC[:, :, row] for row, _ in near.values()])
        for (_, place), row in zip(near.values(), self.exchange.swap(given, counts, counts), strict=True):
            padded[:, :, place] = row
        if rank == 0:
            padded[:, :, 0] = 0
        if rank == ranks - 1:
            padded[:, :, -1] = 0
        return padded

    def padding(self, padding: tuple[int, ...]) -> tuple[int, ...]:
        return (*padding[:-2], 0, padding[-1])

    def over_all_rows(self, layer: Callable[[Tensor], Tensor], x_BTHWC: Tensor) -> Tensor:
        rank, ranks, height = self.exchange.rank, self.exchange.size, x_BTHWC.shape[2]
        counts = [height // self.counts[rank] * count for count in self.counts]
        rows = x_BTHWC.movedim(2, 0)
        rows = self.exchange.swap(rows.expand(ranks, *rows.shape).flatten(0, 1), [height] * ranks, counts)
        return layer(rows.movedim(0, 2).contiguous())[:, :, own(counts, rank)].contiguous()

    def most_elements(self, x_BTHWC: Tensor) -> int:
        """Return the elements of x on the first rank, which has the most."""
        return x_BTHWC.numel() // self.counts[self.exchange.rank] * self.counts[0]


def decode_rows(vae: WanVAE, latents_BCTHW: Tensor, exchange: Exchange) -> Iterator[Tensor]:
    """Yield the rows of this rank, [B, 3, t, 8h, 8W], of the frames that `vae.decode` yields of a chunk's latents.

    All ranks have the latents, and take as many pieces. Raises ValueError for fewer rows of latents than ranks.
    """
    counts = rows_of(latents_BCTHW, exchange.size)
    return vae.decode(latents_BCTHW[:, :, :, own(counts, exchange.rank)], Rows(exchange, counts, vae.piece_elements))


def rows_of(latents_BCTHW: Tensor, ranks: int) -> tuple[int, ...]:
    """Return the rows of latents of every rank. Raises ValueError if one has none."""
    rows = latents_BCTHW.shape[3]
    if rows < ranks:
        raise ValueError(f"{rows} rows of latents cannot be decoded by {ranks} ranks")
    return shares(rows, ranks)


def pictures(vae: WanVAE, latents_1CTHW: Tensor, frames: int, exchange: Exchange) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield groups of a chunk's first `frames` frames, which the ranks decode together, and whether each is finite.

    The groups are uint8 [T, 8H, 8W, 3] on rank 0, and have no rows elsewhere. All ranks take all groups.
    """
    counts = [PIXELS_PER_CELL * count for count in rows_of(latents_1CTHW, exchange.size)]
    for rows in decode_rows(vae, latents_1CTHW, exchange):
        rows = rows[:, :, :frames]
        levels_HTWC = frames_to_uint8(rows)[0].transpose(0, 1)
        finite = torch.isfinite(rows).all().to(torch.uint8)[None]
        joined_HTWC = torch.cat(exchange.to_first(levels_HTWC, counts))
        finites = torch.cat(exchange.to_first(finite, [1] * exchange.size))
        yield joined_HTWC.transpose(0, 1).contiguous(), finites.bool().all()
        frames -= rows.shape[2]
        if not frames:
            return
