"""Blocks of weights that come from their files while other blocks compute.

    file -> page cache -> host slot -> device slot -> the block's parameters, while it computes

Threads read the blocks to come into a ring of host slots, converted on the way. On a CPU a block computes out of its
host slot. On a GPU the host slots are pinned, and a stream of its own copies them to device slots; events, and no
synchronisation, keep a slot from being written while it is read. Vectors and other small parameters stay on the device:
only matrices move.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from helios_cli.errors import OutOfMemory
from helios_cli.units import format_bytes
from helios_cli.weights.placement import DEVICE_SLOTS, HOST_SLOTS, streamed_blocks
from helios_cli.weights.reader import SCALED_DTYPES, Stored, WeightFiles, reading_threads

ALIGNMENT = 256
"""Bytes; of each tensor in a slot, as PyTorch aligns its own."""

WHOLE = ("",)
"""All of a block's weights."""


@dataclass(frozen=True)
class Matrix:
    """A parameter that moves. `name` within its block; `begin` in bytes within a slot."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int

    @property
    def end(self) -> int:
        return self.begin + math.prod(self.shape) * self.dtype.itemsize


def moves(parameter: Tensor) -> bool:
    """Whether a parameter of a block moves with it: matrices do, which are all but a thousandth of a block."""
    return parameter.dim() == 2


def layout_of(block: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> tuple[Matrix, ...]:
    """The matrices of a block one behind the other, so that those of one product can be multiplied as one."""
    found, place = [], 0
    for name, parameter in block.named_parameters():
        if moves(parameter):
            dtype = parameter.dtype if parameter.dtype in SCALED_DTYPES.values() else dtype_of(name)
            found.append(Matrix(name, tuple(parameter.shape), dtype, place))
            place = -(-found[-1].end // ALIGNMENT) * ALIGNMENT
    return tuple(found)


class _Slot:
    """Memory of one block. Pinned memory is not PyTorch's own, which is rounded up to a power of two and kept."""

    def __init__(self, layout: tuple[Matrix, ...], device: torch.device, *, pinned: bool = False) -> None:
        with torch.inference_mode(False):  # written by threads that are not in it
            size = layout[-1].end
            self.memory = pinned_memory(size) if pinned else torch.empty(size, dtype=torch.uint8, device=device)
            self.tensors = {m.name: self.memory[m.begin : m.end].view(m.dtype).view(m.shape) for m in layout}
        self.parameters = {name: nn.Parameter(value, requires_grad=False) for name, value in self.tensors.items()}
        self.copied: torch.cuda.Event | None = None  # of a host slot: its last copy to a GPU


def pinned_memory(size: int) -> Tensor:
    """Bytes that a GPU copies from without a detour, pinned until nobody holds them."""
    memory = np.empty(size, np.uint8)
    code = int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, size, 0))
    if code:
        raise OutOfMemory(
            f"{format_bytes(size)} of host memory could not be pinned (CUDA error {code})",
            hint="raise `ulimit -l`, or take --offload model",
        )
    weakref.finalize(memory, torch.cuda.cudart().cudaHostUnregister, memory.ctypes.data)
    return torch.from_numpy(memory)


class _OnHost:
    """The device is the CPU: nothing to copy."""

    pinned = False

    def enter(self) -> None: ...

    def leave(self) -> None: ...

    def free(self, host: _Slot) -> None: ...

    def bring(self, host: _Slot, begin: int, end: int) -> _Slot:
        return host

    def done(self) -> None: ...


class _OnCuda:
    """Device slots, and the stream that fills them."""

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
            # Their memory may have been another tensor's, whose work is still queued.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def leave(self) -> None:
        self._stream.synchronize()  # host memory that is unpinned under a copy is nobody's
        self._slots.clear()

    def free(self, host: _Slot) -> None:
        """Waits, in a reading thread, until a host slot has been copied and can be written again."""
        if host.copied is not None:
            host.copied.synchronize()

    def bring(self, host: _Slot, begin: int, end: int) -> _Slot:
        """Queues the copy of a host slot's bytes, and lets the computing stream wait for it."""
        self._turn = (self._turn + 1) % DEVICE_SLOTS
        slot, host.copied = self._slots[self._turn], host.copied or torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._computed[self._turn])
            slot.memory[begin:end].copy_(host.memory[begin:end], non_blocking=True)
            host.copied.record(self._stream)
        torch.cuda.current_stream(self._device).wait_event(host.copied)
        return slot

    def done(self) -> None:
        """The block brought last has been launched: its slot is free when that has run."""
        self._computed[self._turn].record(torch.cuda.current_stream(self._device))


@dataclass
class _Load:
    """A block on its way into a host slot."""

    index: int
    slot: _Slot
    pieces: list[Future]


class BlockStream:
    """The blocks of a network, of which some come and go.

    `stored`: where the network's parameters are; those of the blocks begin with `prefix` (`blocks.`). `resident`
    blocks stay, and are the caller's to load; so are parameters that do not move. With `again` the first blocks follow
    the last ones, as the next walk will want them.

    Attributes:
        names: of the parameters that come from here, in the network.
        blocks_read: how often each block was asked for from its file.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        prefix: str,
        stored: Mapping[str, Stored],
        files: WeightFiles,
        device: torch.device,
        dtype_of: Callable[[str], torch.dtype],
        *,
        resident: int = 0,
        again: bool = True,
        cached_bytes: int | None = None,
    ) -> None:
        self.layout = layout_of(blocks[0], dtype_of)
        self.streamed = streamed_blocks(len(blocks), resident)
        self.names = frozenset(f"{prefix}{index}.{matrix.name}" for index in self.streamed for matrix in self.layout)
        self.blocks_read = [0] * len(blocks)
        self._blocks, self._prefix, self._stored, self._files = blocks, prefix, stored, files
        self._again, self._cached_bytes = again, cached_bytes
        self._on = _OnCuda(self.layout, device) if device.type == "cuda" else _OnHost()
        self._slots: list[_Slot] = []
        self._readers = ThreadPoolExecutor(reading_threads(device), thread_name_prefix="weights")
        self._loads: deque[_Load] = deque()
        self._part, self._place, self._count = WHOLE, 0, 0
        self._absent = {
            m.name: nn.Parameter(torch.empty(m.shape, dtype=m.dtype, device="meta"), False) for m in self.layout
        }

    def walk(self, *part: str) -> Iterator[nn.Module]:
        """The blocks in order. A block has its weights until the next one is asked for; with `part` only those
        matrices whose names begin so. CheckpointError where a file cannot be read."""
        self._begin(part or WHOLE)
        wanted = [matrix for matrix in self.layout if matrix.name.startswith(self._part)]
        streamed = frozenset(self.streamed)
        for index, block in enumerate(self._blocks):
            self._read_ahead(wanted)
            if index not in streamed:
                yield block
                continue
            load = self._loads.popleft()
            for piece in load.pieces:
                piece.result()
            slot = self._on.bring(load.slot, wanted[0].begin, wanted[-1].end)
            _bind(block, {matrix.name: slot.parameters[matrix.name] for matrix in wanted})
            try:
                yield block
            finally:
                _bind(block, self._absent)  # what is used beyond its time fails, and does not read another block
                self._on.done()
            self._forget(index, wanted)

    def leave(self, *, host: bool = False) -> None:
        """Gives the device's memory back until the next walk; with `host`, as on a CPU, the host's too, and what was
        read ahead with it."""
        if host or not self._on.pinned:
            self._drop()
            self._on.leave()
            self._slots.clear()
        else:
            self._on.leave()

    def close(self) -> None:
        self._drop()
        self._readers.shutdown()
        self._on.leave()
        self._slots.clear()

    def _begin(self, part: tuple[str, ...]) -> None:
        """Goes on with what was read ahead if that is where the walk begins."""
        self._on.enter()
        if not self._slots and self.streamed:
            self._slots = [_Slot(self.layout, torch.device("cpu"), pinned=self._on.pinned) for _ in range(HOST_SLOTS)]
        if self._part != part or not self._loads or self._loads[0].index != self.streamed[0]:
            self._drop()
            self._part, self._place = part, 0

    def _drop(self) -> None:
        for load in self._loads:
            for piece in load.pieces:
                piece.cancel()
            wait(load.pieces)
        self._loads.clear()

    def _read_ahead(self, wanted: list[Matrix]) -> None:
        while self.streamed and len(self._loads) < HOST_SLOTS:
            if self._place == len(self.streamed):
                if not self._again or self._part != WHOLE:
                    return
                self._place = 0
            self._loads.append(self._load(self.streamed[self._place], wanted))
            self._place += 1

    def _load(self, index: int, wanted: list[Matrix]) -> _Load:
        slot = self._slots[self._count % HOST_SLOTS]
        self._count += 1
        check = self._part == WHOLE and not self.blocks_read[index]  # once is enough: a file that changes is noticed
        self.blocks_read[index] += self._part == WHOLE
        pieces = [
            self._readers.submit(self._read, self._place_of(index, matrix), slot, matrix.name, rows, check)
            for matrix in wanted
            for rows in self._place_of(index, matrix).pieces()
        ]
        return _Load(index, slot, pieces)

    def _place_of(self, index: int, matrix: Matrix) -> Stored:
        return self._stored[f"{self._prefix}{index}.{matrix.name}"]

    def _read(self, stored: Stored, slot: _Slot, name: str, rows: tuple[int, int], check: bool) -> None:
        self._on.free(slot)
        out = slot.tensors[name][slice(*rows)]
        # PyTorch finds no largest among e4m3 values.
        self._files.read(stored, out, rows, check=check and out.dtype not in SCALED_DTYPES.values())

    def _forget(self, index: int, wanted: list[Matrix]) -> None:
        """Of a cache that is smaller than the files, a walk in order finds nothing unless some of it stays."""
        if self._cached_bytes is None or self._part != WHOLE:
            return
        places = [self._place_of(index, matrix) for matrix in wanted]
        before = self.streamed.index(index) * sum(place.info.bytes for place in places)
        if before >= self._cached_bytes:
            for place in places:
                self._readers.submit(self._files.forget, place)


def _bind(block: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(path), leaf, parameter)


class StoredRows(nn.Module):
    """An embedding that stays in its file: only the rows that are asked for are read."""

    def __init__(self, stored: Stored, files: WeightFiles, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._stored, self._files, self._device, self._dtype = stored, files, device, dtype

    def forward(self, tokens_S: Tensor) -> Tensor:
        rows = torch.empty(len(tokens_S), self._stored.info.shape[1], dtype=self._dtype)
        for place, token in enumerate(tokens_S.tolist()):
            self._files.read(self._stored, rows[place : place + 1], (token, token + 1))
        return rows.to(self._device)
