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
        turn: how often the player came before in this step; its samples are others each time.
    """

    step: int
    samples: range
    batch: int
    seed: int
    turn: int = 0

    def generator(self, sample: int, purpose: int = 0) -> torch.Generator:
        """The CPU generator of a sample; `purpose` tells several networks' draws in one step apart."""
        mixed = (self.seed * 1_000_003 + self.step) * 1_000_003 + sample
        return torch.Generator().manual_seed(((mixed * 31 + purpose) * 1_009 + self.turn) % 2**63)

    @property
    def shared(self) -> torch.Generator:
        """What all processes draw alike in this turn, such as its pyramid stage."""
        return self.generator(-1)


class Phase(Protocol):
    """One phase of training.

    Trained parameters are float32 on the run's device; a phase computes in the run's dtype by casting. What of these
    it has as well, the loop uses; the first player holds the mean of its parameters meanwhile, if one is kept:

        optimizers: dict[str, Optimizer]            settings of players that are not moved as `settings.optimizer` says
        save(folder: Path)                          puts its components into the checkpoint `folder`, a whole one
        probe(share: Share) -> dict[str, float]     figures about the run; this process's addends, like losses
        samples(path: Path, step: int)              draws what the model makes by now to the PNG `path`
        state() -> dict, restore(state: dict)       what else a resumed run needs: plain values and tensors
    """

    players: dict[str, nn.Module]
    """The networks that are trained, by name; the first is the one that the phase is for."""

    def turns(self, step: int) -> Sequence[str]:
        """Names of the players that this step updates, in order. A name may come several times."""

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        """One batch through the networks: adds the gradients of `player`'s parameters, returns its losses by name.

        Losses are this process's addends, as its gradients are; their names are alike in all processes of a run.
        """
