"""Encodes a film's frames into pieces, in a thread, so that encoding overlaps rendering.

A bounded queue makes a slow encoder hold the renderer back instead of filling memory. What becomes of a finished piece
is decided by the two writers: `film.writer` (a film) and `film.parts` (chunks of a film that several workers render).
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from helios_cli.film.cache import Cache
from helios_cli.film.feed import Feed
from helios_cli.film.growing import GrowingFilm
from helios_cli.film.pieces import Encoder
from helios_cli.film.resume import Resumed, Wanted
from helios_cli.film.target import Target
from helios_cli.units import QUEUE_BYTES

DRAIN_SECONDS = 5.0
"""Time for a stopped film to encode the chunks that are computed."""


@dataclass(frozen=True)
class Safe:
    """The record that makes a finished chunk safe: its fingerprint, and the state after it, as bytes by `save`."""

    fingerprint: str
    save: Callable[[], bytes]


@dataclass(frozen=True)
class PieceEnd:
    """The end of a piece in the queue, behind its frames; or a `ready` piece of that many frames."""

    num_frames: int
    safe: Safe | None
    ready: bytes | None = None


class PieceWriter(ABC):
    """Takes frames and the ends of pieces; `_keep` is called, in the thread, with each piece once it is encoded.

    Attributes:
        target: the place of the film.
        num_frames: frames given so far, including those of an earlier run.
        feed: gets the pieces as they become safe.
        cache_problem: why finished chunks no longer go into the cache, or None.
    """

    def __init__(self, target: Target, film: GrowingFilm, size: tuple[int, int]) -> None:
        self.target = target
        self.num_frames = 0
        self.cache_problem: OSError | None = None
        self.feed: Feed | None = None
        self._film = film
        self._cache: Cache | None = None
        self._shape = (size[1], size[0], 3)
        self._changed = threading.Condition()
        self._waiting: deque[np.ndarray | PieceEnd] = deque()
        self._held_bytes = 0  # waiting, or being encoded
        self._frames_in_piece = 0
        self._encoder: Encoder | None = None
        self._failure: Exception | None = None
        self._has_ended = self._is_closed = False
        self._drain_seconds = 0.0
        self._thread = threading.Thread(target=self._encode_all, name="film writer", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def resume(self, wanted: Wanted, cache: Cache | None) -> Resumed:
        """Continue what an earlier run left of the chunks. Finished ones also go into `cache`."""

    @property
    def has_after(self) -> bool:
        """Return whether something comes after the render of the film."""
        return self._film.after is not None

    @property
    def num_final_frames(self) -> int:
        """The number of frames of the finished film, as far as it is written."""
        return self._film.num_final_frames

    def complete(self) -> Generator[int, None, None]:
        """Wait for the last piece, and do what comes after the render; yield how many frames are done.

        `close` does it otherwise. If anything is wrong, the work is aborted and the error is raised.
        """
        with self._aborting():
            if self._frames_in_piece:
                self.end_piece()
            self._end()
            self._thread.join()
            self.check()
            self._end_feed()
            with contextlib.closing(self._film.complete()) as counts:
                yield from counts

    def close(self) -> Path:
        """Complete the work, and return its place. Does nothing the second time.

        If anything is wrong, the work is aborted and the error is raised.
        """
        if not self._is_closed:
            for _ in self.complete():
                pass
            with self._aborting():
                self._finish()
            self._is_closed = True
            self._leave(is_whole=True)
        return self.target.path

    def abort(self) -> None:
        """Stop, and drop the unfinished piece. Safe pieces stay, all else goes. Does nothing after `close`."""
        if not self._is_closed:
            self._is_closed = True
            if self._thread.ident:
                self._drain(self._drain_seconds)
            self._end_feed()
            self._leave(is_whole=False)

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        """Abort the work if the block ends with an error."""
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _end_feed(self) -> None:
        if self.feed:
            self.feed.end()

    def _start(self, cache: Cache | None) -> None:
        """Start to encode chunks that can be made safe, and so are worth waiting for after a stop."""
        self._cache, self._drain_seconds = cache, DRAIN_SECONDS
        self._thread.start()

    @abstractmethod
    def _keep(self, piece: bytes, end: PieceEnd) -> bytes | None:
        """Keep a piece, and what makes it safe; return the state that was saved with it, or None."""

    def _finish(self) -> None:  # noqa: B027 (chunks in a store need neither of these)
        """Make a whole of the pieces, all of which are kept."""

    def _leave(self, *, is_whole: bool) -> None:  # noqa: B027
        """Leave the work as it stays: whole, or as far as it is safe."""

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
        self._put(PieceEnd(self._frames_in_piece, safe))
        self._frames_in_piece = 0

    def take_kept(self, safe: Safe, num_frames: int) -> bool:
        """Add the chunk's piece of `num_frames` frames, in this encoding, if the cache has it. Returns whether."""
        piece = self._cache.piece(safe.fingerprint, self._film.piece_key(num_frames)) if self._cache else None
        if piece is not None:
            self._put(PieceEnd(num_frames, safe, piece), len(piece))
            self.num_frames += num_frames
        return piece is not None

    def _end(self) -> None:
        """End the queue; drop frames of an unfinished piece."""
        with self._changed:
            while self._waiting and isinstance(self._waiting[-1], np.ndarray):
                self._waiting.pop()
            self._has_ended = True
            self._changed.notify_all()

    def _put(self, item: np.ndarray | PieceEnd, num_bytes: int = 0) -> None:
        if self._has_ended or self._is_closed:
            raise ValueError("the film is closed")
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
        if isinstance(item, PieceEnd):
            self._finish_piece(item)
        elif encoder:
            encoder.write(item)
        with self._changed:
            self._held_bytes -= len(item.ready or b"") if isinstance(item, PieceEnd) else item.nbytes
            self._changed.notify_all()
        return True

    def _finish_piece(self, end: PieceEnd) -> None:
        piece, encoder = end.ready, self._encoder
        if piece is None and encoder:
            piece, self._encoder = encoder.finish(end.num_frames), None
        state = self._keep(piece or b"", end)
        if state is not None and end.safe and piece and end.ready is None and self._cache:
            try:
                self._cache.put(end.safe.fingerprint, state, self._film.piece_key(end.num_frames), piece)
            except OSError as problem:  # no reason for this film to fail
                self.cache_problem, self._cache = problem, None

    def _drain(self, seconds: float) -> None:
        """Drop the unfinished piece, encode what waits for at most `seconds`, and end the thread."""
        self._end()
        self._thread.join(seconds)
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
            encoder = self._encoder
        if encoder:
            encoder.stop()
        self._thread.join()
