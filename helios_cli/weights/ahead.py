"""The part that works next, read while another one works.

    file -> page cache -> a reader's pinned piece -> the tensor on the GPU
    file -> page cache -> the tensor, on a CPU

The tensors are what `load.load_component` would read, as far as they have room; it takes them from here and reads the
rest. On a GPU a stream of its own copies the pieces. An event keeps a piece from being written while it is copied, and
whoever takes the tensors waits for the copies on the device alone.
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

from helios_cli.weights.load import Wanted
from helios_cli.weights.offload import pinned_memory
from helios_cli.weights.reader import WeightFiles, reading_threads


class _OnHost:
    """The device is the CPU: readers write where the tensors stay."""

    def enter(self, readers: int, size: int) -> None: ...

    def bring(self, reader: int, out: Tensor, read: Callable[[Tensor], None]) -> None:
        read(out)

    def arrive(self) -> None: ...

    def leave(self) -> None: ...


class _OnCuda:
    """A pinned piece for each reader, and the stream that copies them."""

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
        # The tensors' memory may have been another part's, whose work is still queued.
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
        self._stream.synchronize()  # host memory that is unpinned under a copy is nobody's
        self._pieces.clear()


class Ahead:
    """One part at a time, on its way to `device`.

    Attributes:
        part: what is being read or was read; None before, and once it was taken.
    """

    def __init__(self, files: WeightFiles, device: torch.device) -> None:
        self.part: str | None = None
        self._files, self._device = files, device
        self._on = _OnCuda(device) if device.type == "cuda" else _OnHost()
        self._tensors: dict[str, Tensor] = {}
        self._left: deque[tuple[Wanted, Tensor, tuple[int, int]]] = deque()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        # Readers hold nothing of this object, so that they end with it, or with the process.
        weakref.finalize(self, _end, self._left, self._threads, self._on)

    def begin(self, part: str, wanted: Iterable[Wanted], most: int) -> None:
        """Reads the first of the tensors that are `wanted`, up to `most` bytes on the device; another part's are
        dropped."""
        self.drop()
        self.part = part
        size = 0
        for one in wanted:
            most -= math.prod(one.place.info.shape) * one.dtype.itemsize
            if most < 0:
                break
            if one.is_rounded:
                continue
            with torch.inference_mode(False):
                value = torch.empty(one.place.info.shape, dtype=one.dtype, device=self._device)
            self._tensors[one.name] = value
            for rows in one.place.pieces():
                out = value[slice(*rows)] if value.dim() else value
                self._left.append((one, out, rows))
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
        """The tensors of `part` that were begun, by name, for work that is queued from here on; none if it was not
        this part that was read. CheckpointError if a file could not be read."""
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
        """Gives up what is read, and its memory."""
        if self.part is not None:
            _end(self._left, self._threads, self._on)
        self._tensors, self.part = {}, None
        self._errors.clear()

    def close(self) -> None:
        """Gives up all memory. Another part may begin after it."""
        self.drop()
        self._on.leave()


def _read_all(
    left: deque[tuple[Wanted, Tensor, tuple[int, int]]],
    errors: list[Exception],
    files: WeightFiles,
    on: _OnHost | _OnCuda,
    reader: int,
) -> None:
    """What one reader does: a piece after the other until none is left."""
    try:
        while True:
            try:
                one, out, rows = left.popleft()
            except IndexError:
                return
            on.bring(reader, out, lambda host, one=one, rows=rows: files.read(one.place, host, rows, check=one.check))
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
