"""The ranks of a film: processes that make its model calls together, and how they divide them.

The two calls of a guided step go to two teams of half the ranks each, at the same time. Any other call goes to one team
of all ranks. A team of one rank makes a call as a single process does, bit for bit; in a larger one each rank has a
share of the rows (`model.sharded`).

Rank 0 is the process that renders. It gives all ranks the inputs of a call, and gets the flows; no other rank draws a
number or knows the film.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from helios_cli.engine.models import Models
from helios_cli.errors import MachineError
from helios_cli.model.dit import Call
from helios_cli.model.sharded import Exchange, forward_all, shares

OUR_WAIT = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
"""NCCL's watchdog would end the whole process, the film's included; rank 0 waits and gives up by itself."""

LOOPBACK = {"NCCL_SOCKET_IFNAME": "lo"}
"""NCCL finds its peers by a socket, which then listens to this machine alone; tensors go over NVLink or PCIe."""


@dataclass(frozen=True)
class Round:
    """Calls that are made at the same time by one or two teams: team t makes `calls[t::teams]`."""

    teams: int
    calls: tuple[int, ...]


def rounds_of(calls: Sequence[Call], ranks: int) -> list[Round]:
    """Divide calls, by index: both branches of a guided step, which follow each other, at the same time.

    They are known by their noisy latents, which are one tensor. An odd number of ranks is one team for all calls.
    """
    branches: list[int] = []
    for i, j in pairwise(range(len(calls))):
        if ranks % 2 == 0 and i not in branches and calls[i].noisy_BCTHW is calls[j].noisy_BCTHW:
            branches += [i, j]
    others = [i for i in range(len(calls)) if i not in branches]
    return [Round(teams, tuple(found)) for teams, found in ((2, branches), (1, others)) if found]


class Teams:
    """The process groups of `count` ranks, made when they are first needed.

    Args:
        folder: holds the file by which the ranks find each other; nothing listens beyond this machine.
        patience: seconds that an exchange may take.
        finish: waits for an operation of a group.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        count: int,
        device: torch.device,
        patience: float,
        finish: Callable[[Any], object] = lambda work: work.wait(),
    ) -> None:
        self.rank, self.count, self.device = rank, count, device
        self._patience, self._finish = timedelta(seconds=patience), finish
        self._store = dist.FileStore(str(folder / "ranks"), count)
        self._exchanges: dict[int, Exchange] = {}
        self.all = self._exchange(1)

    def place(self, teams: int) -> tuple[int, int]:
        """Return this rank's team among so many, and its place in it."""
        return divmod(self.rank, self.count // teams)

    def close(self) -> None:
        """End exchanges that no other rank will take part in any more."""
        for exchange in self._exchanges.values():
            if self.device.type == "cuda":
                exchange.group.abort()
        self._exchanges.clear()

    def make(self, models: Models, calls: Sequence[Call], rounds: Sequence[Round]) -> dict[int, Tensor]:
        """Make this rank's part of the calls, and return all flows by index, on rank 0 alone."""
        flows: dict[int, Tensor] = {}
        for turn in rounds:
            team, _ = self.place(turn.teams)
            own = [calls[i] for i in turn.calls[team :: turn.teams]]
            if turn.teams == self.count:
                values = models.answer_alone(own)
            else:
                values = self._shared(models, own, self._exchange(turn.teams))
            mine = torch.cat([value.flatten() for value in values])
            lengths = [self._lengths(models, calls, turn, rank) for rank in range(self.count)]
            found = self.all.to_first(mine, [sum(each) for each in lengths])
            if self.rank == 0:
                pieces = [part.split(each) for part, each in zip(found, lengths, strict=True)]
                flows |= self._join(models, calls, turn, pieces)
        return flows

    def _shared(self, models: Models, calls: Sequence[Call], exchange: Exchange) -> list[Tensor]:
        """Return this rank's patches of calls: one after the other, or together where blocks stream."""
        dit = models.dit
        if models.stream is not None:
            return forward_all(dit, calls, exchange)
        return [patches for call in calls for patches in forward_all(dit, [call], exchange)]

    def _lengths(self, models: Models, calls: Sequence[Call], turn: Round, rank: int) -> list[int]:
        """Return how many values a rank has of each call that its team makes."""
        team, place = divmod(rank, size := self.count // turn.teams)
        dit = models.dit
        return [
            calls[i].noisy_BCTHW.numel() // prod(grid := dit.grid(calls[i])) * shares(prod(grid), size)[place]
            for i in turn.calls[team :: turn.teams]
        ]

    def _join(
        self, models: Models, calls: Sequence[Call], turn: Round, pieces: Sequence[Sequence[Tensor]]
    ) -> dict[int, Tensor]:
        """Return flows by index from what every rank has of each call of its team."""
        size = self.count // turn.teams
        flows = {}
        for team in range(turn.teams):
            for place, i in enumerate(turn.calls[team :: turn.teams]):
                parts = [pieces[rank][place] for rank in range(team * size, (team + 1) * size)]
                noisy, dit = calls[i].noisy_BCTHW, models.dit
                if size == 1:
                    flows[i] = parts[0].view(noisy.shape)
                else:
                    flows[i] = dit.flow(calls[i], torch.cat(parts).view(1, prod(dit.grid(calls[i])), -1))
        return flows

    def _exchange(self, teams: int) -> Exchange:
        if teams not in self._exchanges:
            team, place = self.place(teams)
            store = dist.PrefixStore(f"{teams}.{team}", self._store)
            group = _group(store, place, self.count // teams, self.device, self._patience)
            self._exchanges[teams] = Exchange(group, self._finish)
        return self._exchanges[teams]


def _group(store: dist.Store, rank: int, size: int, device: torch.device, patience: timedelta) -> Any:
    if device.type == "cuda":
        for name, value in {**LOOPBACK, **OUR_WAIT}.items():
            os.environ.setdefault(name, value)
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = patience
        return dist.ProcessGroupNCCL(store, rank, size, nccl)
    kind: Any = dist.ProcessGroupGloo
    gloo = kind._Options()
    gloo._devices = [kind.create_device(hostname="127.0.0.1")]
    gloo._timeout = patience
    return kind(store, rank, size, gloo)


def devices_of(device: torch.device, count: int) -> list[torch.device]:
    """Return the device of each of `count` ranks: GPUs that follow each other from `device` on, or one CPU for all.

    Raises MachineError if there are fewer, or if ranks cannot work together there.
    """
    what, alone = f"--gpus-per-film {count}", "leave out --gpus-per-film"
    if count == 1:
        return [device]
    if device.type not in ("cuda", "cpu"):
        raise MachineError(f"{what}: ranks need CUDA GPUs or a CPU, not {device}", hint=alone)
    if not dist.is_available() or (device.type == "cuda" and not dist.is_nccl_available()):
        missing = "NCCL" if dist.is_available() else "torch.distributed"
        raise MachineError(f"{what}: PyTorch {torch.__version__} is built without {missing}", hint=alone)
    if device.type == "cpu":
        return [device] * count
    first, there = device.index or 0, torch.cuda.device_count()
    if first + count > there:
        left = there - first
        raise MachineError(
            f"{what}: from {device} on there {'is 1 GPU' if left == 1 else f'are {left} GPUs'} here",
            hint=alone if left == 1 else f"use at most {left}; `helios doctor` shows what is there",
        )
    return [torch.device("cuda", index) for index in range(first, first + count)]
