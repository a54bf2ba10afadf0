"""Streams blocks of weights from their files while other blocks compute.

    file -> page cache -> host slot -> device slot -> the block's parameters, while it computes

Threads read and convert the next blocks into a ring of host slots. On a CPU a block computes from its host slot. On a
GPU the host slots are pinned, and a separate stream copies them to device slots; events protect a slot that is being
read from being written, without synchronisation. Only matrices move; vectors and other small parameters stay on the
device.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from helios_cli.errors import OutOfMemory
from helios_cli.units import format_bytes
from helios_cli.weights.placement import DEVICE_SLOTS, HOST_SLOTS, streamed_blocks
from helios_cli.weights.reader import SCALED_DTYPES, StoredTensor, WeightFiles, reading_threads

ALIGNMENT = 256
"""The alignment of tensors in a slot, in bytes, as in PyTorch."""


@dataclass(frozen=True)
class Matrix:
    """A parameter that moves: `name` within its block, `begin` in bytes within a slot."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape) * self.dtype.itemsize


def moves(parameter: Tensor) -> bool:
    """Return whether a parameter moves: matrices do, which are 99.9 % of a block."""
    return parameter.dim() == 2


def layout_of(
    block: nn.Module, dtype_of: Callable[[str], torch.dtype], part: Callable[[str], bool] = lambda name: True
) -> tuple[Matrix, ...]:
    """Lay out the matrices of a block whose names are in `part` one after another, so that those of one product can be
    multiplied as one."""
    matrices, place = [], 0
    for name, parameter in block.named_parameters():
        if moves(parameter) and part(name):
            dtype = parameter.dtype if parameter.dtype in SCALED_DTYPES.values() else dtype_of(name)
            matrices.append(Matrix(name, tuple(parameter.shape), dtype, place))
            place = -(-matrices[-1].end // ALIGNMENT) * ALIGNMENT
    return tuple(matrices)


class _Slot:
    """The memory of one block. PyTorch does not allocate pinned memory, as it rounds to powers of two and keeps it."""

    def __init__(self, layout: tuple[Matrix, ...], device: torch.device, *, pinned: bool = False) -> None:
        with torch.inference_mode(False):  # written by threads that are not in it
            size = layout[-1].end
            self.memory = pinned_memory(size) if pinned else torch.empty(size, dtype=torch.uint8, device=device)
            self.tensors = {m.name: self.memory[m.begin : m.end].view(m.dtype).view(m.shape) for m in layout}
        self.parameters = {name: nn.Parameter(value, requires_grad=False) for name, value in self.tensors.items()}
        self.copied: torch.cuda.Event | None = None  # the last copy of a host slot to a GPU


def pinned_memory(size: int) -> Tensor:
    """Allocate page-locked bytes, which a GPU copies directly; they are unpinned when nobody holds them."""
    memory = np.empty(size, np.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, size, 0))
    if code:
        raise OutOfMemory(
            f"{format_bytes(size)} of host memory could not be pinned (CUDA error {code})",
            hint="raise `ulimit -l`, or use --offload model",
        )
    weakref.finalize(memory, torch.cuda.cudart().cudaHostUnregister, memory.ctypes.data)
    return torch.from_numpy(memory)


class _OnHost:
    """Blocks on the CPU, which need no copy."""

    pinned = False

    def enter(self) -> None: ...

    def leave(self) -> None: ...

    def free(self, host: _Slot) -> None: ...

    def bring(self, host: _Slot) -> _Slot:
        return host

    def done(self) -> None: ...


class _OnCuda:
    """Blocks on a GPU: device slots, and the stream that fills them."""

    pinned = True

    def __init__(self, layout: tuple[Matrix, ...], device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._stream = torch.cuda.Stream(device)
        self._slots: list[_Slot] = []
        self._computed = [torch.cuda.Event() for _ in range(DEVICE_SLOTS)]
        self._turn = 0

    def enter(self) -> None:
        if not self._slots:
            self._slots = [_Slot(self._layout, self._device) for _ in range(DEVICE_SLOTS)]
            # Queued work may still use the memory of the new slots.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def leave(self) -> None:
        self._stream.synchronize()  # memory must not be unpinned during a copy
        self._slots.clear()

    def free(self, host: _Slot) -> None:
        """Wait (in a reading thread) until a host slot has been copied and can be written again."""
        if host.copied is not None:
            host.copied.synchronize()

    def bring(self, host: _Slot) -> _Slot:
        """Queue the copy of a host slot, and let the computing stream wait for it."""
        self._turn = (self._turn + 1) % DEVICE_SLOTS
        slot, host.copied = self._slots[self._turn], host.copied or torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._computed[self._turn])
            slot.memory.copy_(host.memory, non_blocking=True)
            host.copied.record(self._stream)
        torch.cuda.current_stream(self._device).wait_event(host.copied)
        return slot

    def done(self) -> None:
        """Note that the last block's work was queued: its slot is free when that has run."""
        self._computed[self._turn].record(torch.cuda.current_stream(self._device))


@dataclass
class _Load:
    """A block on its way into a host slot."""

    index: int
    slot: _Slot
    pieces: list[Future]


class BlockStream:
    """The blocks of a network, some of which are streamed.

    `stored` has the places of the network's parameters; those of the blocks begin with `prefix` (`blocks.`). The caller
    loads `resident` blocks, which stay, and parameters that do not move or whose names in their block are not in
    `part`. With `again` the first blocks are read after the last ones, for the next walk.

    Attributes:
        names: The names in the network of the parameters that are streamed.
        blocks_read: How often each block was read from its file.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        prefix: str,
        stored: Mapping[str, StoredTensor],
        files: WeightFiles,
        device: torch.device,
        dtype_of: Callable[[str], torch.dtype],
        *,
        resident: int = 0,
        again: bool = True,
        cached_bytes: int | None = None,
        part: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.layout = layout_of(blocks[0], dtype_of, part)
        self.streamed = streamed_blocks(len(blocks), resident)
        self.names = frozenset(f"{prefix}{index}.{matrix.name}" for index in self.streamed for matrix in self.layout)
        self.blocks_read = [0] * len(blocks)
        self._blocks, self._prefix, self._stored, self._files = blocks, prefix, stored, files
        self._again, self._cached_bytes = again, cached_bytes
        self._on = _OnCuda(self.layout, device) if device.type == "cuda" else _OnHost()
        self._slots: list[_Slot] = []
        self._new_readers = partial(ThreadPoolExecutor, reading_threads(device), thread_name_prefix="weights")
        self._readers = self._new_readers()
        self._loads: deque[_Load] = deque()
        self._place = self._count = 0
        self._absent = {
            m.name: nn.Parameter(torch.empty(m.shape, dtype=m.dtype, device="meta"), False) for m in self.layout
        }

    def walk(self) -> Iterator[nn.Module]:
        """Yield the blocks in order. Each has its weights until the next one is requested.

        Raises CheckpointError if a file cannot be read.
        """
        self._begin()
        streamed = frozenset(self.streamed)
        for index, block in enumerate(self._blocks):
            self._read_ahead()
            if index not in streamed:
                yield block
                continue
            load = self._loads.popleft()
            for piece in load.pieces:
                piece.result()
            _bind(block, self._on.bring(load.slot).parameters)
            try:
                yield block
            finally:
                _bind(block, self._absent)  # later use fails, rather than read another block's weights
                self._on.done()
            self._forget(index)

    def walk_once(self) -> Iterator[nn.Module]:
        """Walk through the blocks, and free the memory of the walk and its threads."""
        try:
            yield from self.walk()
        finally:
            self.close()
            self._readers = self._new_readers()

    def leave(self, *, host: bool = False) -> None:
        """Free the device's memory until the next walk; with `host`, and on a CPU, also host memory and read blocks."""
        frees_host = host or not self._on.pinned
        if frees_host:
            self._drop()
        self._on.leave()  # before the slots, which it may still copy
        if frees_host:
            self._slots.clear()

    def close(self) -> None:
        self.leave(host=True)
        self._readers.shutdown()

    def _begin(self) -> None:
        """Start a walk, with the blocks that were read ahead if they are its first ones."""
        self._on.enter()
        if not self._slots and self.streamed:
            self._slots = [_Slot(self.layout, torch.device("cpu"), pinned=self._on.pinned) for _ in range(HOST_SLOTS)]
        if not self._loads or self._loads[0].index != self.streamed[0]:
            self._drop()
            self._place = 0

    def _drop(self) -> None:
        for load in self._loads:
            for piece in load.pieces:
                piece.cancel()
            wait(load.pieces)
        self._loads.clear()

    def _read_ahead(self) -> None:
        while self.streamed and len(self._loads) < HOST_SLOTS:
            if self._place == len(self.streamed):
                if not self._again:
                    return
                self._place = 0
            self._loads.append(self._load(self.streamed[self._place]))
            self._place += 1

    def _load(self, index: int) -> _Load:
        slot = self._slots[self._count % HOST_SLOTS]
        self._count += 1
        check = not self.blocks_read[index]  # once: a file that changes later is an error
        self.blocks_read[index] += 1
        pieces = [
            self._readers.submit(self._read, self._place_of(index, matrix), slot, matrix.name, rows, check)
            for matrix in self.layout
            for rows in self._place_of(index, matrix).pieces()
        ]
        return _Load(index, slot, pieces)

    def _place_of(self, index: int, matrix: Matrix) -> StoredTensor:
        return self._stored[f"{self._prefix}{index}.{matrix.name}"]

    def _read(self, stored: StoredTensor, slot: _Slot, name: str, rows: tuple[int, int], check: bool) -> None:
        self._on.free(slot)
        out = slot.tensors[name][slice(*rows)]
        has_aminmax = out.dtype not in SCALED_DTYPES.values()  # PyTorch has none for e4m3
        self._files.read(stored, out, rows, check=check and has_aminmax)

    def _forget(self, index: int) -> None:
        """Let blocks beyond `cached_bytes` leave the page cache, or walks in order would always miss a small cache."""
        if self._cached_bytes is None:
            return
        places = [self._place_of(index, matrix) for matrix in self.layout]
        before = self.streamed.index(index) * sum(place.info.bytes for place in places)
        if before >= self._cached_bytes:
            for place in places:
                self._readers.submit(self._files.forget, place)


def _bind(block: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(path), leaf, parameter)


class StoredRows(nn.Module):
    """An embedding that stays in its file: each lookup reads only its rows."""

    def __init__(self, stored: StoredTensor, files: WeightFiles, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._stored, self._files, self._device, self._dtype = stored, files, device, dtype

    def forward(self, tokens_S: Tensor) -> Tensor:
        rows = torch.empty(len(tokens_S), self._stored.info.shape[1], dtype=self._dtype)
        for place, token in enumerate(tokens_S.tolist()):
            self._files.read(self._stored, rows[place : place + 1], (token, token + 1))
        return rows.to(self._device)
