"""Reads tensors from weight files into existing memory, a few rows at a time.

Files are read with pread, not mapped: a truncated file or a failed disk is an error here, but a SIGBUS behind a
mapping, which ends the process without a message. The page cache holds the same pages either way. Files stay open, so
a film can be finished after a file was removed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from helios_cli.errors import CheckpointError
from helios_cli.weights.adapters import Term
from helios_cli.weights.files import TensorInfo, damaged, read_header
from helios_cli.weights.placement import GPU_READERS, PIECE_BYTES

FLOAT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCALED_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8, "U8": torch.uint8}
"""The types that are read only with scales (`engine.convert`); U8 only as it is stored, for it holds two weights."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in its file. `scale` has the float32 factors of one of SCALED_DTYPES; None for other types.

    `terms` are what LoRA files add to it: every reader gets the sum, computed in float32 and then rounded."""

    info: TensorInfo
    scale: TensorInfo | None = None
    terms: tuple[Term, ...] = ()

    @property
    def rows(self) -> int:
        return self.info.shape[0] if self.info.shape else 1

    def pieces(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield spans of rows from `begin` to `end` (default: all) of at most PIECE_BYTES, or of one row."""
        step = max(1, PIECE_BYTES * self.rows // max(1, self.info.bytes))
        end = self.rows if end is None else end
        for first in range(begin, end, step):
            yield first, min(first + step, end)


class WeightFiles:
    """Open weight files, from which several threads may read at the same time."""

    def __init__(self) -> None:
        self._open: dict[Path, _File] = {}
        self._lock = threading.Lock()
        self._own = threading.local()
        self.bytes_read = 0

    def read(
        self, stored: StoredTensor, out: Tensor, rows: tuple[int, int] | None = None, *, check: bool = True
    ) -> None:
        """Read `rows` (begin, end) of a tensor, all by default, into contiguous host memory `out` of any float type.

        Raises CheckpointError if they cannot be read or, with `check`, are not finite in the type of `out`.
        """
        begin, end = rows or (0, stored.rows)
        for first, last in stored.pieces(begin, end):
            piece = out[first - begin : last - begin] if out.dim() else out
            self._read_piece(stored, piece, first, last, check=check)

    def forget(self, stored: StoredTensor) -> None:
        """Let the kernel drop a tensor's pages from its cache, so that others stay."""
        if hasattr(os, "posix_fadvise"):
            info = stored.info
            os.posix_fadvise(self._file(info).opened.fileno(), info.begin, info.bytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        with self._lock:
            for file in self._open.values():
                file.opened.close()
            self._open.clear()

    def _read_piece(self, stored: StoredTensor, out: Tensor, first: int, last: int, *, check: bool) -> None:
        info = stored.info
        file = self._file(info)
        row = info.bytes // max(1, stored.rows)
        place, size = info.begin + first * row, (last - first) * row
        dtype = FLOAT_DTYPES.get(info.dtype) or SCALED_DTYPES[info.dtype]
        if dtype == out.dtype and not stored.terms:
            file.read_into(out, place, info)
            values = out
        else:
            raw = self._staging(size)
            file.read_into(raw, place, info)
            values = raw.view(dtype).view(out.shape)
            if stored.scale is not None:
                values = values.float().mul_(self._scale(stored.scale, first, last).view(-1, *[1] * (out.dim() - 1)))
            if stored.terms:
                if check:
                    _require_finite(info, values, values)
                values = self._folded(stored.terms, values.to(torch.float32, copy=True), first, last)
                if check:
                    _require_finite(stored.terms[-1].up, values, values)
            out.copy_(values)
        if check:
            _require_finite(info, values, out)
        with self._lock:
            self.bytes_read += size

    def _folded(self, terms: tuple[Term, ...], values: Tensor, first: int, last: int) -> Tensor:
        """Add to the float32 `values` of some rows what LoRA files add to them, in place."""
        flat = values.view(last - first, -1)
        for term in terms:
            up = self._floats(term.up, first, last).view(last - first, -1)
            if term.down is None:
                flat.add_(up, alpha=term.scale)
            else:
                flat.addmm_(up, self._down(term.down), alpha=term.scale)
        return values

    def _down(self, info: TensorInfo) -> Tensor:
        """Return a whole matrix [r, in] in float32. The pieces of a weight come one after another, so each thread keeps
        the last one."""
        known = getattr(self._own, "down", None)
        if known is None or known[0] != info:
            known = self._own.down = info, self._floats(info, 0, info.shape[0]).view(info.shape[0], -1)
        return known[1]

    def _floats(self, info: TensorInfo, first: int, last: int) -> Tensor:
        """Read some rows of a LoRA's tensor, in float32."""
        row = info.bytes // info.shape[0]
        raw = torch.empty((last - first) * row, dtype=torch.uint8)
        self._file(info).read_into(raw, info.begin + first * row, info)
        return raw.view(FLOAT_DTYPES[info.dtype]).float()

    def _scale(self, info: TensorInfo, first: int, last: int) -> Tensor:
        scale = torch.empty(last - first)
        self._file(info).read_into(scale, info.begin + 4 * first, info)
        return scale

    def _staging(self, size: int) -> Tensor:
        """Return this thread's buffer for bytes that are converted."""
        buffer = getattr(self._own, "staging", None)
        if buffer is None or buffer.numel() < size:
            buffer = self._own.staging = torch.empty(max(size, PIECE_BYTES), dtype=torch.uint8)
        return buffer[:size]

    def _file(self, info: TensorInfo) -> _File:
        with self._lock:
            if info.file not in self._open:
                self._open[info.file] = _File(info.file)
            file = self._open[info.file]
        if file.tensors.get(info.name) != info:
            raise damaged(info.file, f"{info.name} is not where it was when the model was opened")
        return file


class _File:
    """An open file, with its size and time of change, which must stay the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_header(path)
        try:
            self.opened = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        self._status = self._now()

    def read_into(self, out: Tensor, place: int, info: TensorInfo) -> None:
        """Fill `out` with the bytes from `place` on, which belong to `info`."""
        memory = out.view(-1).view(torch.uint8).numpy().data
        done = 0
        try:
            while done < len(memory):
                count = _pread(self.opened.fileno(), memory[done:], place + done)
                if count == 0:
                    raise damaged(self.path, f"truncated while it was read, in {info.name}")
                done += count
            if self._now() != self._status:
                raise damaged(self.path, "changed while it was read: the model is not the one that was opened")
        except OSError as error:
            raise damaged(self.path, f"{info.name} cannot be read: {error.strerror or error}") from error

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self.opened.fileno())
        return status.st_size, status.st_mtime_ns


def _pread(descriptor: int, memory: memoryview, place: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [memory], place)
    data = os.pread(descriptor, len(memory), place)  # on an old macOS
    memory[: len(data)] = data
    return len(data)


def reading_threads(device: torch.device) -> int:
    return min(GPU_READERS, os.cpu_count() or 1) if device.type == "cuda" else 1


def expect_files(paths: Iterable[Path]) -> None:
    """Let the kernel read files into its page cache, in a thread that nobody waits for."""

    def advise() -> None:
        for path in paths:
            with contextlib.suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    if hasattr(os, "posix_fadvise"):
        threading.Thread(target=advise, name="expect weights", daemon=True).start()


def _require_finite(info: TensorInfo, stored: Tensor, used: Tensor) -> None:
    if used.numel() == 0 or all(bound.isfinite() for bound in torch.aminmax(used)):
        return
    if all(bound.isfinite() for bound in torch.aminmax(stored)):
        raise CheckpointError(
            f"{info.file}: tensor {info.name} has values that {used.dtype} cannot hold", hint="use --dtype bfloat16"
        )
    raise damaged(info.file, f"tensor {info.name} has values that are not finite")
