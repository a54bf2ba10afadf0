"""Writes frames into a film: an .mp4 or .mkv through ffmpeg, or a folder of PNG pictures.

A thread encodes, so that encoding overlaps rendering; a bounded queue makes a slow encoder hold the renderer back
instead of filling memory. The film grows piece by piece under `<name>.partial.mp4` next to its target and takes the
target's name only when it is whole, so a file under that name is never broken.

With a journal next to it (`resume`), each piece is safe as soon as it is finished: whatever ends the process, the next
run continues after the last one.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from helios_cli.errors import InputError
from helios_cli.film import ffmpeg
from helios_cli.film.cache import Cache
from helios_cli.film.growing import Chapter, GrowingFile, GrowingFilm, GrowingFolder
from helios_cli.film.journal import Journal
from helios_cli.film.pieces import Encoder
from helios_cli.film.resume import Resumed, Wanted, resume
from helios_cli.film.target import Target, check_target, film_exists, is_taken
from helios_cli.units import QUEUE_BYTES

DRAIN_SECONDS = 5.0
"""Time for a stopped film to encode the chunks that are computed."""

__all__ = ["FilmWriter", "Safe", "Target", "check_target", "open_writer"]


def open_writer(
    path: str | os.PathLike,
    *,
    size: tuple[int, int],
    fps: float,
    codec: str = "h264",
    crf: int = 17,
    preset: str = "medium",
    keep: bool = False,
    force: bool = True,
) -> FilmWriter:
    """Start a film at `path` of `size` (width, height) pixels; use it as a context manager.

    A film at `path` stays until `close` replaces it; `check_target` and `check_encoding` check it first. `codec`,
    `crf` and `preset` apply to .mp4 only. At most QUEUE_BYTES of frames wait for the encoder, or one larger array.
    `keep` leaves journal and pieces next to the finished film. Without `force`, `FilmWriter.resume` and `close` replace
    no finished film, and no unfinished one whose chunks are of no use and in no cache.
    """
    target = check_target(path, force=True)
    encoding = ffmpeg.Encoding(codec, crf, preset)
    if not 1 <= fps <= 1000:
        raise InputError(f"{fps} frames per second cannot be written", hint="write a rate from 1 to 1000")
    if target.kind == "mp4" and (size[0] % 2 or size[1] % 2):
        raise InputError(f"an .mp4 cannot be {size[0]}x{size[1]}: both must be even", hint="write an even --size")
    film: GrowingFilm
    if target.kind == "png":
        film = GrowingFolder(target)
    else:
        film = GrowingFile(target, size, fps, encoding if target.kind == "mp4" else None)
    return FilmWriter(target, film, size, keep, force)


@dataclass(frozen=True)
class Safe:
    """The record that makes a finished chunk safe: its fingerprint, and the state after it, as bytes by `save`."""

    fingerprint: str
    save: Callable[[], bytes]


@dataclass(frozen=True)
class _PieceEnd:
    """The end of a piece in the queue, behind its frames; or a `ready` piece of that many frames."""

    num_frames: int
    safe: Safe | None
    ready: bytes | None = None


class FilmWriter:
    """A film that is being written. Leaving the `with` block closes it; an exception in the block aborts it.

    Attributes:
        num_frames: frames given so far, including those of an earlier run.
        cache_problem: why finished chunks no longer go into the cache, or None.
    """

    def __init__(self, target: Target, film: GrowingFilm, size: tuple[int, int], keep: bool, force: bool) -> None:
        self.target = target
        self.num_frames = 0
        self.cache_problem: OSError | None = None
        self._film, self._keep, self._force = film, keep, force
        self._metadata: Mapping[str, str] = {}
        self._chapters: Sequence[Chapter] = ()
        self._journal: Journal | None = None
        self._cache: Cache | None = None
        self._drain_seconds = 0.0
        self._shape = (size[1], size[0], 3)
        self._changed = threading.Condition()
        self._waiting: deque[np.ndarray | _PieceEnd] = deque()
        self._held_bytes = 0  # waiting, or being encoded
        self._frames_in_piece = 0
        self._encoder: Encoder | None = None
        self._failure: Exception | None = None
        self._has_ended = self._is_closed = False
        self._thread = threading.Thread(target=self._encode_all, name="film writer", daemon=True)

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def resume(self, wanted: Wanted, cache: Cache | None) -> Resumed:
        """Keep a journal, and continue what an earlier run left of the film. Call it before the first frame.

        Finished chunks also go into `cache`. MachineError if another process renders the film, InputError if a film is
        there that must not be replaced, or the beginning of another.
        """
        self._journal, self._cache, self._drain_seconds = Journal(self.target), cache, DRAIN_SECONDS
        if not self._force and is_taken(self.target):  # checked this late: another run may just have finished it
            raise film_exists(self.target.path)
        wanted = replace(wanted, settings={**wanted.settings, "encoding": self._film.name})
        resumed = resume(wanted, self._journal, self._film, cache, force=self._force)
        self.num_frames = self._film.num_frames
        self._thread.start()
        return resumed

    def describe(self, metadata: Mapping[str, str], chapters: Sequence[Chapter]) -> None:
        """Set the metadata and chapters of a file; a folder of pictures has none. Call it before `close`."""
        self._metadata, self._chapters = metadata, chapters

    @property
    def safe_chunks(self) -> int:
        """The number of chunks that the next run of the same film need not render."""
        return len(self._journal.records) if self._journal else 0

    def check(self) -> None:
        """Raise the error that stopped the encoder, if it has stopped."""
        if self._failure:
            raise self._failure

    def write(self, frames: np.ndarray) -> None:
        """Take uint8 frames [T, H, W, 3], C-contiguous, by reference: the array must not change afterwards.

        Returns at once unless the queue is full. Raises the error that stopped the encoder, if it has stopped.
        """
        is_valid = frames.dtype == np.uint8 and frames.shape[1:] == self._shape and frames.flags.c_contiguous
        if not is_valid or not len(frames):
            raise ValueError(f"frames must be contiguous uint8 [T, {self._shape}], not {frames.dtype} {frames.shape}")
        self._put(frames, frames.nbytes)
        self.num_frames += len(frames)
        self._frames_in_piece += len(frames)

    def end_piece(self, safe: Safe | None = None) -> None:
        """End the piece of the frames since the last one; in a film with a journal it is then made safe."""
        self._put(_PieceEnd(self._frames_in_piece, safe))
        self._frames_in_piece = 0

    def take_kept(self, safe: Safe, num_frames: int) -> bool:
        """Add the chunk's piece of `num_frames` frames, in this encoding, if the cache has it. Returns whether."""
        piece = self._cache.piece(safe.fingerprint, self._key(num_frames)) if self._cache else None
        if piece is not None:
            self._put(_PieceEnd(num_frames, safe, piece), len(piece))
            self.num_frames += num_frames
        return piece is not None

    def close(self) -> Path:
        """Wait for the last frame, ensure that the film is whole and on disk, give it its name and return that.

        If anything is wrong, the film does not get its name and the error is raised.
        """
        if self._is_closed:
            return self.target.path
        try:
            if not self.num_frames:
                raise ValueError("no frames were written")
            if self._frames_in_piece:
                self.end_piece()
            self._end()
            self._thread.join()
            self.check()
            self._film.finish(self._metadata, self._chapters)
            if not self._force and is_taken(self.target):  # a film that came during the render is not replaced
                raise film_exists(self.target.path)
        except BaseException:
            self.abort()
            raise
        self._is_closed = True
        self._film.publish()
        self._leave(keep=self._keep)
        return self.target.path

    def abort(self) -> None:
        """Stop, and drop the unfinished piece. Safe pieces stay, all else goes. Does nothing after `close`."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread.ident:
            self._end()
            self._thread.join(self._drain_seconds)
            with self._changed:
                self._waiting.clear()
                self._changed.notify_all()
                encoder = self._encoder
            if encoder:
                encoder.stop()
            self._thread.join()
            self._film.discard()
        self._leave(keep=self.safe_chunks > 0)

    def _leave(self, *, keep: bool) -> None:
        """Close the journal or, unless `keep`, remove the unfinished film, and after it the journal that guards it."""
        if self._journal and keep:
            self._journal.close()
        elif self._journal:  # without one nothing there is ours
            self._film.remove()
            self._journal.remove()

    def _end(self) -> None:
        """End the queue; drop frames of an unfinished piece."""
        with self._changed:
            while self._waiting and isinstance(self._waiting[-1], np.ndarray):
                self._waiting.pop()
            self._has_ended = True
            self._changed.notify_all()

    def _put(self, item: np.ndarray | _PieceEnd, num_bytes: int = 0) -> None:
        if self._has_ended or self._is_closed:
            raise ValueError("the film is closed")
        if self._journal is None:
            self._journal = Journal(self.target)
            self._film.begin()
            self._journal.begin("", {})
            self._thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or not self._held_bytes or self._held_bytes + num_bytes <= QUEUE_BYTES
            )
            self.check()
            self._waiting.append(item)
            self._held_bytes += num_bytes
            self._changed.notify_all()

    def _encode_all(self) -> None:
        try:
            while self._encode_next():
                pass
        except Exception as failure:
            with self._changed:
                self._failure = failure
                self._waiting.clear()
                self._changed.notify_all()
        if self._encoder:
            self._encoder.stop()

    def _encode_next(self) -> bool:
        """Encode one item of the queue; False at the end. It is a method so that no reference outlives the item."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._has_ended)
            if not self._waiting:
                return False
            item = self._waiting.popleft()
            if self._encoder is None and isinstance(item, np.ndarray):
                self._encoder = self._film.encoder()
            encoder = self._encoder
        if isinstance(item, _PieceEnd):
            self._finish_piece(item)
        elif encoder:
            encoder.write(item)
        with self._changed:
            self._held_bytes -= len(item.ready or b"") if isinstance(item, _PieceEnd) else item.nbytes
            self._changed.notify_all()
        return True

    def _finish_piece(self, end: _PieceEnd) -> None:
        """Put the piece into the film, then its record into the journal, each on disk before the next."""
        piece, encoder = end.ready, self._encoder
        if piece is None and encoder:
            piece, self._encoder = encoder.finish(end.num_frames), None
        mark = self._film.append(piece or b"", end.num_frames)
        if end.safe is None or self._journal is None:
            return
        state = end.safe.save()
        self._journal.append(end.safe.fingerprint, mark, state)
        if piece and end.ready is None and self._cache:
            try:
                self._cache.put(end.safe.fingerprint, state, self._key(end.num_frames), piece)
            except OSError as problem:  # no reason for this film to fail
                self.cache_problem, self._cache = problem, None

    def _key(self, num_frames: int) -> str:
        return f"{self._film.key}-{num_frames}"
