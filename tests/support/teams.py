"""Ranks as threads of one process, which exchange rows by gloo as processes do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch
from torch.distributed import HashStore, ProcessGroupGloo

from helios_cli.model.sharded import Exchange

T = TypeVar("T")


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """Return the results of `work` for each of `count` ranks, which run at the same time."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(torch.inference_mode()(work), range(count)))


def as_ranks(count: int, work: Callable[[Exchange], T]) -> list[T]:
    """Return the results of `work` on each of `count` ranks, which wait a minute at most for each other."""
    store = HashStore()

    def run(rank: int) -> T:
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(minutes=1)
        return work(Exchange(ProcessGroupGloo(store, rank, count, options)))

    return in_threads(count, run)
