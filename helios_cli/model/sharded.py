"""One model call by several ranks: Ulysses, with the rows divided once for all blocks.

A rank is a process; the ranks that make one call together are a team. Each rank of a team has the whole transformer and
a share of the rows: of the history and of the noisy tokens, each for itself, so that every rank knows where its own
history ends. Rows are divided where they enter the transformer, stay divided through all blocks, and meet again as
patches behind it.

    norm, q k v    of a rank's own rows, all heads
    all-to-all     every rank gets all rows of its own heads
    attention      over all rows
    all-to-all     every rank gets its own rows of all heads
    cross-attention, feed-forward    of a rank's own rows; each has the prompt's keys and values

Nothing is padded: the first ranks have one row more where a number of rows does not divide. Rows follow each other by
ranks in the attention, whose sums therefore have another order than in one process. Nothing here draws a number.

Shapes: S rows of the call, R rows of this rank, N heads, n heads of a rank, D head size, P values of a patch; a call
has one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from helios_cli.model.attention import Choice, attention
from helios_cli.model.dit import Call, HeliosDiT


class Exchange:
    """Exchanges rows between the ranks of a team.

    Args:
        group: a process group of `torch.distributed` (gloo or NCCL).
        finish: waits for an operation of the group; by default as long as the group does.
    """

    def __init__(self, group: Any, finish: Callable[[Any], object] = lambda work: work.wait()) -> None:
        self.group, self._finish = group, finish
        self.rank, self.size = group.rank(), group.size()

    def swap(self, rows: Tensor, given: Sequence[int], taken: Sequence[int]) -> Tensor:
        """Give `given[r]` of the rows to each rank r, in order, and return the `taken[r]` rows that come from each."""
        out = rows.new_empty(sum(taken), *rows.shape[1:])
        self._finish(self.group.alltoall_base(out, rows.contiguous(), list(taken), list(given)))
        return out

    def broadcast(self, x: Tensor) -> None:
        """Write the tensor of rank 0 into `x` of every rank."""
        self._finish(self.group.broadcast(x, 0))

    def to_first(self, x: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Return on rank 0 what every rank gives; elsewhere empty tensors. Rank r gives `counts[r]` rows."""
        given = [len(x)] + [0] * (self.size - 1)
        taken = list(counts) if self.rank == 0 else [0] * self.size
        return list(self.swap(x, given, taken).split(taken))


def shares(count: int, ranks: int) -> tuple[int, ...]:
    """Return how many of `count` rows each rank has; the first ranks have one more where they do not divide."""
    return tuple(count // ranks + (rank < count % ranks) for rank in range(ranks))


@dataclass(frozen=True)
class Share:
    """The share of a call's rows that a rank has.

    Attributes:
        history, noisy: rows of every rank, in the order of the ranks.
    """

    exchange: Exchange
    history: tuple[int, ...]
    noisy: tuple[int, ...]

    @classmethod
    def of(cls, dit: HeliosDiT, call: Call, exchange: Exchange) -> Share:
        noisy = prod(dit.grid(call))
        return cls(exchange, shares(call.history_BME.shape[1], exchange.size), shares(noisy, exchange.size))

    @property
    def history_rows(self) -> slice:
        return own(self.history, self.exchange.rank)

    @property
    def noisy_rows(self) -> slice:
        return own(self.noisy, self.exchange.rank)

    def call(self, call: Call) -> Call:
        """Return the call with this rank's history and rotations; the noisy latents are whole."""
        rope_SD2, split = call.rope, sum(self.history)
        rope = torch.cat([rope_SD2[:split][self.history_rows], rope_SD2[split:][self.noisy_rows]])
        return call._replace(history_BME=call.history_BME[:, self.history_rows], rope=rope)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, choice: Choice, *, noisy_only: bool) -> Tensor:
        """Compute attention over the rows of all ranks, for this rank's rows or with `noisy_only` its noisy ones.

        `q`, `k` and `v` are [1, R, N, D]. Returns [1, R, N * D].
        """
        rows = [history + noisy for history, noisy in zip(self.history, self.noisy, strict=True)]
        if noisy_only:
            asking: Sequence[int] = self.noisy
            (q,), (k, v) = self._own_heads(asking, q), self._own_heads(rows, k, v)
        else:
            asking = rows
            q, k, v = self._own_heads(rows, q, k, v)
        return self._own_rows(asking, attention(q, k, v, None, choice)[0])[None]

    def _own_heads(self, counts: Sequence[int], *tensors: Tensor) -> list[Tensor]:
        """Exchange own rows of all heads, each [1, R, N, D], for all rows of own heads, [1, S, n, D]."""
        ranks, first = self.exchange.size, tensors[0]
        rows, heads, size = first.shape[1:]
        given = first.new_empty(ranks, rows, len(tensors), heads // ranks, size)
        for place, x in enumerate(tensors):
            given[:, :, place] = x[0].unflatten(1, (ranks, heads // ranks)).transpose(0, 1)
        taken = self.exchange.swap(given.flatten(0, 1), [rows] * ranks, counts)
        return [x[None] for x in taken.unbind(1)]

    def _own_rows(self, counts: Sequence[int], y: Tensor) -> Tensor:
        """Exchange all rows of own heads, [S, n * D], for own rows of all heads, [R, N * D]."""
        ranks, rows = self.exchange.size, counts[self.exchange.rank]
        taken = self.exchange.swap(y, counts, [rows] * ranks)
        return taken.view(ranks, rows, y.shape[1]).transpose(0, 1).flatten(1)


def own(counts: Sequence[int], rank: int) -> slice:
    """Return the rows of a rank, of all rows in the order of the ranks."""
    ends = list(accumulate(counts))
    return slice(ends[rank] - counts[rank], ends[rank])


def forward_all(dit: HeliosDiT, calls: Sequence[Call], exchange: Exchange) -> list[Tensor]:
    """Return the patches [1, R, P] of this rank's noisy rows, for each of several calls in one walk over the blocks.

    All ranks of the team make the same calls. `dit.flow` makes a flow of the patches of all ranks, in their order.
    """
    parts = [Share.of(dit, call, exchange) for call in calls]
    own = [share.call(call) for share, call in zip(parts, calls, strict=True)]
    streams = [dit.begin(call, share.noisy_rows) for share, call in zip(parts, own, strict=True)]
    for rows, share in zip(streams, parts, strict=True):
        rows.share = share
    dit.advance_all(own, streams)
    return [dit.project(rows) for rows in streams]
