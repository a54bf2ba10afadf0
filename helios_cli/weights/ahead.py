"""Reads the part of the model that works next while another part works.

    file -> page cache -> a reader's pinned piece -> the tensor on the GPU
    file -> page cache -> the tensor, on a CPU

`load.load_component` takes these tensors and reads those for which there was no room. On a GPU a separate stream copies
the pieces; an event protects a piece while it is copied, and only the device waits for the copies.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from helios_cli.weights.load import TensorToLoad
from helios_cli.weights.offload import pinned_memory
from helios_cli.weights.reader import WeightFiles, reading_threads


class _OnHost:
    """Tensors on the CPU: readers write to their final place."""

    def enter(self, readers: int, size: int) -> None: ...

    def bring(self, reader: int, out: Tensor, read: Callable[[Tensor], None]) -> None:
        read(out)

    def arrive(self) -> None: ...

    def leave(self) -> None: ...


class _OnCuda:
    """Tensors on a GPU: a pinned piece for each reader, and the stream that copies them."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pieces: list[tuple[Tensor, torch.cuda.Event]] = []

    def enter(self, readers: int, size: int) -> None:
        if not self._pieces or len(self._pieces[0][0]) < size:
            self.leave()
            memory = pinned_memory if self.pinned else partial(torch.empty, dtype=torch.uint8)
            with torch.inference_mode(False):  # written by threads that are not in it
                self._pieces = [(memory(size), torch.cuda.Event()) for _ in range(readers)]
        # Queued work of another part may still use the memory of the new tensors.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def bring(self, reader: int, out: Tensor, read: Callable[[Tensor], None]) -> None:
        memory, copied = self._pieces[reader]
        copied.synchronize()
        host = memory[: out.nbytes].view(out.dtype).view(out.shape)
        read(host)
        with torch.cuda.stream(self._stream):
            out.copy_(host, non_blocking=True)
            copied.record(self._stream)

    def arrive(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def leave(self) -> None:
        self._stream.synchronize()  # memory must not be unpinned during a copy
        self._pieces.clear()


class Ahead:
    """Brings one part at a time to `device`. `part` is the name of the one on its way, None before it begins and
    after it was taken."""

    def __init__(self, files: WeightFiles, device: torch.device) -> None:
        self.part: str | None = None
        self._files, self._device = files, device
        self._on = _OnCuda(device) if device.type == "cuda" else _OnHost()
        self._tensors: dict[str, Tensor] = {}
        self._left: deque[tuple[TensorToLoad, Tensor, tuple[int, int]]] = deque()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        # Readers hold no reference to this object, so that they end with it, or with the process.
        weakref.finalize(self, _end, self._left, self._threads, self._on)

    def begin(self, part: str, tensors: Iterable[TensorToLoad], most: int) -> None:
        """Start to read the first of `tensors`, up to `most` bytes on the device; drops those of another part."""
        self.drop()
        self.part = part
        size = 0
        for tensor in tensors:
            most -= math.prod(tensor.place.info.shape) * tensor.dtype.itemsize
            if most < 0:
                break
            if tensor.is_rounded:
                continue
            with torch.inference_mode(False):
                value = torch.empty(tensor.place.info.shape, dtype=tensor.dtype, device=self._device)
            self._tensors[tensor.name] = value
            for rows in tensor.place.pieces():
                out = value[slice(*rows)] if value.dim() else value
                self._left.append((tensor, out, rows))
                size = max(size, out.nbytes)
        if not self._left:
            return
        readers = reading_threads(self._device)
        self._on.enter(readers, size)
        work = partial(_read_all, self._left, self._errors, self._files, self._on)
        for reader in range(readers):
            self._threads.append(threading.Thread(target=work, args=(reader,), name="read ahead", daemon=True))
            self._threads[-1].start()

    def take(self, part: str) -> dict[str, Tensor]:
        """Return the tensors of `part` by name, for work that is queued from now on; nothing if another part was read.

        Raises CheckpointError if a file could not be read.
        """
        if part != self.part:
            return {}
        _join(self._threads)
        if self._errors:
            error = self._errors[0]
            self.drop()
            raise error
        self._on.arrive()
        tensors, self._tensors, self.part = self._tensors, {}, None
        return tensors

    def drop(self) -> None:
        """Drop the part and its memory."""
        if self.part is not None:
            _end(self._left, self._threads, self._on)
        self._tensors, self.part = {}, None
        self._errors.clear()

    def close(self) -> None:
        """Free all memory. Another part may begin later."""
        self.drop()
        self._on.leave()


def _read_all(
    left: deque[tuple[TensorToLoad, Tensor, tuple[int, int]]],
    errors: list[Exception],
    files: WeightFiles,
    on: _OnHost | _OnCuda,
    reader: int,
) -> None:
    """Read one piece after another until none is left (one reader)."""
    try:
        while True:
            try:
                tensor, out, rows = left.popleft()
            except IndexError:
                return
            read = partial(files.read, tensor.place, rows=rows, check=tensor.check)
            on.bring(reader, out, read)
    except Exception as error:  # raised where the part is taken
        errors.append(error)
        left.clear()


def _end(left: deque, threads: list[threading.Thread], on: _OnHost | _OnCuda) -> None:
    left.clear()
    _join(threads)
    on.leave()


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
    threads.clear()
