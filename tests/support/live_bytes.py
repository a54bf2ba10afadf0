"""Bytes of tensors alive at once, followed through every operation of PyTorch, on any device, meta included."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Live(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given:  # a view or an operation in place makes nothing
                self._follow(storage)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor)]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that tensors made by `work` hold at once; what was there before does not count."""
    live = _Live()
    with torch.no_grad(), live:
        work()
    return live.peak
