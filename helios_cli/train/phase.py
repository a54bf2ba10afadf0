"""What the training loop and a phase of training agree on.

A phase owns the networks, the data and the losses; the loop (`loop.py`) owns optimizers, averaging over processes,
EMA, resuming and what is written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """The part of one update's batch that this process computes.

    Sample i of step s is drawn from a generator that depends on the run's seed, s and i alone: a resumed run and a run
    on several processes see the same samples.

    Attributes:
        step: number of the training step, from 0.
        samples: indices of this process's samples in the batch.
        batch: samples of all processes together; a loss is summed over `samples` and divided by `batch`, so that the
            processes' gradients add up to the batch's.
        seed: of the run.
    """

    step: int
    samples: range
    batch: int
    seed: int

    def generator(self, sample: int, purpose: int = 0) -> torch.Generator:
        """The CPU generator of a sample; `purpose` tells several networks' draws in one step apart."""
        mixed = (self.seed * 1_000_003 + self.step) * 1_000_003 + sample
        return torch.Generator().manual_seed((mixed * 31 + purpose) % 2**63)

    @property
    def shared(self) -> torch.Generator:
        """What all processes draw alike in this step, such as its pyramid stage."""
        return self.generator(-1)


class Phase(Protocol):
    """One phase of training."""

    players: dict[str, nn.Module]
    """The networks that are trained, by name; the first is the one that the phase is for."""

    def turns(self, step: int) -> Sequence[str]:
        """Names of the players that this step updates, in order. A name may come several times."""

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        """One batch through the networks: adds the gradients of `player`'s parameters, returns its losses by name.

        Losses are this process's addends, as its gradients are.
        """
