"""The finished pieces of a film that grows, for any number of readers, each from any piece on.

They read the growing film on disk, and next to it a file of its sound that has no name. Nothing is kept in memory
except where pieces end.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from helios_cli.film import mp4
from helios_cli.film.disk import disk_errors
from helios_cli.film.growing import Mark
from helios_cli.film.sound_pieces import SoundPieces


@dataclass(frozen=True)
class Piece:
    """A piece of a film, from 0: a chunk's fragments, whose times go on from those of the piece before it, and those of
    its sound."""

    index: int
    start_frame: int
    num_frames: int
    data: bytes


class Feed:
    """The pieces of one growing film file. `FilmWriter` fills it; readers call it from any thread.

    Attributes:
        num_kept: the number of pieces that an earlier run had left. They have no sound here, except for the last one.
    """

    def __init__(self) -> None:
        self.num_kept = 0
        self._changed = threading.Condition()
        self._path = Path()
        self._file: int | None = None
        self._frames, self._ends = [0], [0]  # before each piece; the init segment counts for the first one
        self._init, self._header_bytes = b"", 0  # of which the growing film has none for the sound
        self._sound: SoundPieces | None = None
        self._sound_file: IO[bytes] | None = None
        self._sound_ends = [0]
        self._is_over = False
        self._callbacks: list[Callable[[], object]] = []

    @property
    def init(self) -> bytes:
        """The init segment, which readers need before any piece; b"" before there is a piece."""
        return self._init

    @property
    def num_pieces(self) -> int:
        return len(self._ends) - 1

    @property
    def num_frames(self) -> int:
        return self._frames[-1]

    @property
    def is_over(self) -> bool:
        """Return whether no more pieces come."""
        return self._is_over

    def piece(self, index: int) -> Piece:
        """Read a piece. IndexError if it is not there."""
        with self._changed:
            if not 0 <= index < self.num_pieces or self._file is None:
                raise IndexError(f"the film has no piece {index} yet")
            start, end = self._ends[index] or self._header_bytes, self._ends[index + 1]
            frames = self._frames[index], self._frames[index + 1]
            data = os.pread(self._file, end - start, start)
            if self._sound_file is not None:
                start, end = self._sound_ends[index], self._sound_ends[index + 1]
                data += os.pread(self._sound_file.fileno(), end - start, start)
        return Piece(index, frames[0], frames[1] - frames[0], data)

    def wait(self, index: int, timeout: float | None = None) -> bool:
        """Wait until piece `index` is there, or no more come. Returns whether it is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or index < self.num_pieces, timeout)
            return index < self.num_pieces

    def listen(self, callback: Callable[[], object]) -> None:
        """Have `callback` called after each piece and at the end, in the thread that writes: it must return soon."""
        with self._changed:
            self._callbacks.append(callback)

    def unlisten(self, callback: Callable[[], object]) -> None:
        with self._changed:
            self._callbacks.remove(callback)

    def begin(self, path: Path | None = None, marks: Sequence[Mark] = (), sound: SoundPieces | None = None) -> None:
        """Follow the film at `path`, which has the pieces `marks` already; those of a folder, and of a stream, which
        has no path, are only counted. `sound` begins with the last of them."""
        with self._changed:
            self._close_files()
            self._frames, self._ends, self._init, self._is_over = [0], [0], b"", False
            self._path, self._sound, self._sound_ends = path or Path(), sound, [0]
            if path and not path.is_dir():
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            if sound:
                with disk_errors(self._path):  # `close` closes it
                    self._sound_file = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
            for mark in marks:
                self._note(mark, is_heard=mark is marks[-1])
            self.num_kept = len(marks)
        self._tell()

    def add(self, mark: Mark) -> None:
        """Note a piece that is in the film, and on disk, or has gone down the pipe of a stream."""
        with self._changed:
            self._note(mark)
        self._tell()

    def end(self) -> None:
        """Let readers know that no more pieces come. What is there can be read until `close`."""
        self._is_over = True
        if self._sound:
            self._sound.close()
        self._tell()

    def close(self) -> None:
        self.end()
        with self._changed:
            self._close_files()

    def _note(self, mark: Mark, *, is_heard: bool = True) -> None:
        frames = self._frames[-1] + mark.frames
        if self._sound and self._sound_file is not None:
            data = self._sound.until(frames) if is_heard else b""
            with disk_errors(self._path):
                self._sound_file.write(data)
                self._sound_file.flush()
            self._sound_ends.append(self._sound_ends[-1] + len(data))
        if self._file is not None and not self._init:
            init, _ = mp4.split(os.pread(self._file, mark.length, 0))
            self._header_bytes = len(init)
            self._init = self._sound.under(init) if self._sound else init
        self._frames.append(frames)
        self._ends.append(mark.length)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def _close_files(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._sound_file is not None:
            self._sound_file.close()
            self._sound_file = None
