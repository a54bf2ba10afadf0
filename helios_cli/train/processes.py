"""One run on several processes, each computing its share of every batch; their gradients are added up.

`torchrun` starts the processes and sets their numbers in the environment; without it there is one.
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

BUCKET = 2**25
"""Elements of gradients that are added up at a time: 128 MB of extra memory, and few enough messages."""

LONGEST_WAIT = timedelta(hours=12)
"""The time that processes wait for each other. The first one samples, probes and writes alone, which can take
longer than the default of NCCL (10 minutes) or gloo (30). If a process dies, torchrun ends the others."""


class Processes:
    """The processes of a run; this one is number `rank` of `count` and computes on `device`."""

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device

    @property
    def leads(self) -> bool:
        """Return whether this process is the one that writes."""
        return self.rank == 0

    def share(self, step: int, batch: int, seed: int, turn: int = 0) -> Share:
        samples = range(self.rank * batch // self.count, (self.rank + 1) * batch // self.count)
        return Share(step=step, samples=samples, batch=batch, seed=seed, turn=turn)

    def add_gradients(self, params: Sequence[nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients; skip parameters that have none anywhere."""
        if self.count == 1:
            return
        counts = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=self.device)
        dist.all_reduce(counts)
        params = [p for p, count in zip(params, counts.tolist(), strict=True) if count]
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for bucket in _buckets(params):
            # An idle network has its gradients on the host, which NCCL cannot access.
            flat = torch.cat([p.grad.flatten().to(self.device) for p in bucket])
            dist.all_reduce(flat)
            for p, total in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad.copy_(total.view_as(p))

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over the processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def greatest(self, *values: float) -> list[float]:
        """Return the maximum of each value over the processes."""
        if self.count == 1:
            return list(values)
        maxima = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(maxima, dist.ReduceOp.MAX)
        return maxima.tolist()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def _buckets(params: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters in order, in lists of one dtype and at most BUCKET elements, or a single larger one."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in params:
        if bucket and (size + p.numel() > BUCKET or p.grad.dtype != bucket[0].grad.dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket


def rank_and_count() -> tuple[int, int]:
    """Return this process's number among those that torchrun started, and how many there are."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """Return this process's own GPU on a machine where each process has one; otherwise `device`."""
    if device.type != "cuda" or rank_and_count()[1] == 1:
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: torch.device, batch: int) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone. InputError if the batch has no sample for each."""
    rank, count = rank_and_count()
    if count == 1:
        yield Processes(0, 1, device)
        return
    if batch < count:
        raise InputError(f"a batch of {batch} cannot be spread over {count} processes", hint=f"set batch to {count}")
    device = own_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Processes(rank, count, device)
    finally:
        dist.destroy_process_group()
