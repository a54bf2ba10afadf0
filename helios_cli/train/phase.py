"""The interface between the training loop and a phase of training.

A phase owns the networks, the data and the losses; the loop (`loop.py`) owns optimizers, averaging over processes,
EMA, resuming and the log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from helios_cli.train.settings.run import Optimizer
from helios_cli.train.state import CHECKPOINT


@dataclass(frozen=True)
class Share:
    """The part of one update's batch that this process computes.

    Sample i of step s is drawn from a generator that depends only on the run's seed, s and i: a resumed run and a run
    on several processes see the same samples.

    Attributes:
        step: number of the training step, from 0.
        samples: indices of this process's samples in the batch.
        batch: samples of all processes together; a loss is summed over `samples` and divided by `batch`, so that the
            processes' gradients add up to the batch's.
        seed: seed of the run.
        turn: how often the player came before in this step; each time it gets different samples.
    """

    step: int
    samples: range
    batch: int
    seed: int
    turn: int = 0

    def generator(self, sample: int, purpose: int = 0) -> torch.Generator:
        """Return the CPU generator of a sample; `purpose` separates the draws of several networks in one step."""
        mixed = (self.seed * 1_000_003 + self.step) * 1_000_003 + sample
        return torch.Generator().manual_seed(((mixed * 31 + purpose) * 1_009 + self.turn) % 2**63)

    @property
    def shared(self) -> torch.Generator:
        """The generator of draws that are the same in all processes, such as a turn's pyramid stage."""
        return self.generator(-1)


class Phase(ABC):
    """One phase of training.

    Trained parameters are float32 on the run's device; a phase computes in the run's dtype by casting. Optional methods
    that the loop uses if a phase has them; if a running mean is kept, the first player holds it while they run:

        save(path: Path)                            write its components into the complete checkpoint `path`, or
                                                    the file that it leaves in place of one
        probe(share: Share) -> dict[str, float]     figures about the run; this process's addends, like losses
        samples(path: Path, step: int)              draw what the model makes now to the PNG `path`
        state() -> dict, restore(state: dict)       anything else a resumed run needs: plain values and tensors
    """

    players: dict[str, nn.Module]
    """The networks that are trained, by name; the first is the one that the phase is for."""

    leaves: str = CHECKPOINT
    """The name of what a run leaves in its folder: a checkpoint, or a file that the phase writes alone."""

    optimizers: Mapping[str, Optimizer] = MappingProxyType({})
    """Settings of players that do not use `settings.optimizer`."""

    def turns(self, step: int) -> Sequence[str]:
        """Return the names of the players that this step updates, in order. A name may occur several times."""
        return tuple(self.players)

    @abstractmethod
    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        """Run one batch through the networks: add the gradients of `player`'s parameters, return its losses by name.

        Losses are this process's addends, as its gradients are; their names are the same in all processes of a run.
        """
