"""One run on several processes, each computing its share of every batch; their gradients are added up.

`torchrun` starts the processes and says in the environment who they are; without it there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helios_cli.errors import InputError
from helios_cli.train.phase import Share

TOGETHER = 2**25
"""Elements of gradients that are added up at a time: 128 MB of extra memory, and few enough messages."""

LONGEST_WAIT = timedelta(hours=12)
"""How long processes wait for one another: the first samples, measures and writes alone, which can take longer than
NCCL's ten minutes or gloo's thirty. A process that died is not waited for: torchrun ends the rest."""


class Spread:
    """The processes of a run; this one is number `rank` of `count` and computes on `device`."""

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, step: int, batch: int, seed: int, turn: int = 0) -> Share:
        samples = range(self.rank * batch // self.count, (self.rank + 1) * batch // self.count)
        return Share(step=step, samples=samples, batch=batch, seed=seed, turn=turn)

    def add_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Let every process have the sum of all processes' gradients. What none has a gradient for is left alone."""
        if self.count == 1:
            return
        held = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=self.device)
        dist.all_reduce(held)
        params = [p for p, holders in zip(params, held.tolist(), strict=True) if holders]
        if not params:
            return
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for together in _batches(params):
            # A network that rests has its gradients on the host, where NCCL does not reach.
            flat = torch.cat([p.grad.flatten().to(self.device) for p in together])
            dist.all_reduce(flat)
            for p, summed in zip(together, flat.split([p.numel() for p in together]), strict=True):
                p.grad.copy_(summed.view_as(p))

    def add(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def greatest(self, *values: float) -> list[float]:
        """The greatest of each value over the processes."""
        if self.count == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def _batches(params: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in order, some of a kind at a time, of TOGETHER elements unless one alone has more."""
    batch: list[nn.Parameter] = []
    size = 0
    for p in params:
        if batch and (size + p.numel() > TOGETHER or p.grad.dtype != batch[0].grad.dtype):
            yield batch
            batch, size = [], 0
        batch.append(p)
        size += p.numel()
    if batch:
        yield batch


def part_of_run() -> tuple[int, int]:
    """This process's number among those that torchrun started, and how many these are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where each has one of its own; `device` elsewhere."""
    if device.type != "cuda" or part_of_run()[1] == 1:
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


@contextmanager
def spread(device: torch.device, batch: int) -> Iterator[Spread]:
    """The processes that torchrun started, or this one alone. InputError if the batch has not a sample for each."""
    rank, count = part_of_run()
    if count == 1:
        yield Spread(0, 1, device)
        return
    if batch < count:
        raise InputError(f"a batch of {batch} cannot be spread over {count} processes", hint=f"set batch to {count}")
    device = own_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Spread(rank, count, device)
    finally:
        dist.destroy_process_group()
