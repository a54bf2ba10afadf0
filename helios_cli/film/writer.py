"""Frames into a film: an .mp4 or .mkv through ffmpeg, or a folder of PNG pictures.

A thread encodes, so that encoding overlaps rendering; a bounded queue makes a slow encoder hold the renderer back
instead of filling memory. The film grows piece by piece under `<name>.partial.mp4` beside its target and takes the
target's name only when it is whole, so a file under that name is never broken.

A journal stands beside it. With `resume` each piece is safe as soon as it is finished, and whatever ends the process,
the next run goes on behind the last one.
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
from helios_cli.film.pieces import Encoder, Encodings, PicturePieces, VideoPieces
from helios_cli.film.resume import Resumed, Wanted, resume
from helios_cli.film.target import Target, check_target, film_exists, is_taken
from helios_cli.units import QUEUE_BYTES

DRAIN_SECONDS = 5.0
"""How long a film that is stopped may take to encode the chunks that are computed."""

__all__ = ["FilmWriter", "Safe", "Target", "check_target", "open_writer"]


def open_writer(
    path: str | os.PathLike,
    *,
    size: tuple[int, int],
    fps: float,
    codec: str = "h264",
    crf: int = 17,
    preset: str = "medium",
    metadata: Mapping[str, str] | None = None,
    chapters: Sequence[Chapter] = (),
    queue_bytes: int = QUEUE_BYTES,
    keep: bool = False,
    force: bool = True,
) -> FilmWriter:
    """Start a film at `path` of `size` (width, height) pixels; use it as a context manager.

    What is at `path` stays until `close` replaces it; see `check_target` and `check_encoding` for looking first.
    `metadata` is kept in the file (in every picture of a folder), `chapters` in a file only; `codec`, `crf` and
    `preset` count for .mp4 only.
    At most `queue_bytes` of frames wait for the encoder, or one array of frames where a single one is larger.
    `keep` leaves journal and pieces beside the finished film. Without `force` a film that is there when this one is
    taken up (`FilmWriter.resume`) stays, and so does an unfinished one of which no chunk is of use or kept elsewhere.
    """
    target = check_target(path, force=True)
    encoding = ffmpeg.Encoding(codec, crf, preset)
    if not 1 <= fps <= 1000:
        raise InputError(f"{fps} frames per second cannot be written", hint="write a rate from 1 to 1000")
    if target.kind == "mp4" and (size[0] % 2 or size[1] % 2):
        raise InputError(f"an .mp4 cannot be {size[0]}x{size[1]}: both must be even", hint="write an even --size")
    metadata = metadata or {}
    if target.kind == "png":
        pieces, film = PicturePieces(), GrowingFolder(target, metadata)
    else:
        pieces = VideoPieces(target, size, fps, encoding if target.kind == "mp4" else None)
        film = GrowingFile(target, fps)
    writer = FilmWriter(target, pieces, film, size, queue_bytes, keep, force)
    writer.describe(metadata, chapters)
    return writer


@dataclass(frozen=True)
class Safe:
    """What makes a finished chunk safe: its fingerprint, and the state after it, made into bytes by `save`."""

    fingerprint: str
    save: Callable[[], bytes]


@dataclass(frozen=True)
class _PieceEnd:
    """Stands in the queue behind the frames of a piece, or alone with a `ready` piece of that many frames."""

    num_frames: int
    safe: Safe | None
    ready: bytes | None = None


class FilmWriter:
    """A film that is being written. Leaving the `with` block closes it, an exception in the block aborts it.

    Attributes:
        num_frames: frames given so far, with those taken over.
        cache_problem: why finished chunks are no longer kept for other films, or None.
    """

    def __init__(
        self,
        target: Target,
        pieces: Encodings,
        film: GrowingFilm,
        size: tuple[int, int],
        queue_bytes: int,
        keep: bool,
        force: bool,
    ) -> None:
        self.target = target
        self.num_frames = 0
        self.cache_problem: OSError | None = None
        self._pieces, self._film, self._keep, self._force = pieces, film, keep, force
        self._metadata: Mapping[str, str] = {}
        self._chapters: Sequence[Chapter] = ()
        self._journal: Journal | None = None
        self._resumes = False
        self._cache: Cache | None = None
        self._shape = (size[1], size[0], 3)
        self._limit = queue_bytes
        self._changed = threading.Condition()
        self._waiting: deque[np.ndarray | _PieceEnd] = deque()
        self._held_bytes = 0  # waiting, or being encoded
        self._frames_in_piece = 0
        self._encoder: Encoder | None = None
        self._failure: Exception | None = None
        self._ended = self._closed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def resume(self, wanted: Wanted, cache: Cache | None) -> Resumed:
        """Keep a journal, and go on from what an earlier run left of the film. Before the first frame.

        Finished chunks go into `cache` as well. MachineError if another process renders the film, InputError if there
        is one that is not to be replaced, or the beginning of another.
        """
        self._journal, self._cache, self._resumes = Journal(self.target), cache, True
        if not self._force and is_taken(self.target):  # by now only: another run may have finished it meanwhile
            raise film_exists(self.target.path)
        wanted = replace(wanted, settings={**wanted.settings, "encoding": self._pieces.name})
        resumed = resume(wanted, self._journal, self._film, self._pieces.key, cache, force=self._force)
        self.num_frames = self._film.num_frames
        self._start()
        return resumed

    def describe(self, metadata: Mapping[str, str], chapters: Sequence[Chapter]) -> None:
        """What a file is to say of itself, for a film of which that is known at its end only. Before `close`."""
        self._metadata, self._chapters = metadata, chapters

    @property
    def safe_chunks(self) -> int:
        """Chunks that the next run of the same film need not render."""
        return len(self._journal.records) if self._journal else 0

    def check(self) -> None:
        """Raises what stopped the encoder, if it has stopped."""
        if self._failure:
            raise self._failure

    def write(self, frames: np.ndarray) -> None:
        """Take uint8 frames [T, H, W, 3], C-contiguous, by reference: the array must not change afterwards.

        Returns at once unless the queue is full. Raises what stopped the encoder if it has stopped.
        """
        good = frames.dtype == np.uint8 and frames.shape[1:] == self._shape and frames.flags.c_contiguous
        if not good or not len(frames):
            raise ValueError(f"frames must be contiguous uint8 [T, {self._shape}], not {frames.dtype} {frames.shape}")
        self._put(frames, frames.nbytes)
        self.num_frames += len(frames)
        self._frames_in_piece += len(frames)

    def end_piece(self, safe: Safe | None = None) -> None:
        """What was written since the last piece is a piece; in a film with a journal it is then made safe."""
        self._put(_PieceEnd(self._frames_in_piece, safe))
        self._frames_in_piece = 0

    def take_kept(self, safe: Safe, num_frames: int) -> bool:
        """Whether the chunk's piece of `num_frames` frames, in this encoding, was kept and is now in the film."""
        piece = self._cache.piece(safe.fingerprint, self._key(num_frames)) if self._cache else None
        if piece is not None:
            self._put(_PieceEnd(num_frames, safe, piece), len(piece))
            self.num_frames += num_frames
        return piece is not None

    def close(self) -> Path:
        """Wait for the last frame, make sure that the film is whole and on disk, give it its name; return that.

        If anything is wrong the film does not get its name and the reason is raised.
        """
        if self._closed:
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
            if not self._force and is_taken(self.target):  # what came while the film was made is not ours to replace
                raise film_exists(self.target.path)
        except BaseException:
            self.abort()
            raise
        self._closed = True
        self._film.publish()
        if self._keep:
            self._journal.close()
        else:
            self._remove()
        return self.target.path

    def abort(self) -> None:
        """Stop, and drop the piece that is not whole. Pieces made safe stay, all else goes. Nothing after `close`."""
        if self._closed:
            return
        self._closed = True
        if self._thread:
            self._end()
            self._thread.join(DRAIN_SECONDS if self._resumes else 0)
            self._stop_encoding()
            self._thread.join()
            self._film.discard()
        if self._journal and self._journal.records:
            self._journal.close()
        elif self._journal:  # else nothing is ours yet
            self._remove()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._encode_all, name="film writer", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        """Nothing more comes; frames of a piece that is not whole are dropped."""
        with self._changed:
            while self._waiting and isinstance(self._waiting[-1], np.ndarray):
                self._waiting.pop()
            self._ended = True
            self._changed.notify_all()

    def _stop_encoding(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
            encoder = self._encoder
        if encoder:
            encoder.stop()

    def _remove(self) -> None:
        """The film in the making goes, and its journal, whose lock guards it, after it."""
        self._film.remove()
        self._journal.remove()

    def _put(self, item: np.ndarray | _PieceEnd, num_bytes: int = 0) -> None:
        if self._ended or self._closed:
            raise ValueError("the film is closed")
        if self._thread is None:
            self._journal = Journal(self.target)
            self._film.begin()
            self._journal.begin("", {})
            self._start()
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._has_room(num_bytes))
            self.check()
            self._waiting.append(item)
            self._held_bytes += num_bytes
            self._changed.notify_all()

    def _has_room(self, num_bytes: int) -> bool:
        return not self._held_bytes or self._held_bytes + num_bytes <= self._limit

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
        """One item of the queue; False at the end. A method of its own, so that no reference outlives the turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return False
            item = self._waiting.popleft()
            if self._encoder is None and isinstance(item, np.ndarray):
                self._encoder = self._pieces.encoder()
        if isinstance(item, np.ndarray):
            self._encoder.write(item)
            num_bytes = item.nbytes
        else:
            self._finish_piece(item)
            num_bytes = len(item.ready or b"")
        with self._changed:
            self._held_bytes -= num_bytes
            self._changed.notify_all()
        return True

    def _finish_piece(self, end: _PieceEnd) -> None:
        """The piece into the film, then its record into the journal: in this order, each on disk before the next."""
        piece = end.ready
        if piece is None:
            piece, self._encoder = self._encoder.finish(end.num_frames), None
        mark = self._film.append(piece, end.num_frames)
        if end.safe:
            state = end.safe.save()
            self._journal.append(end.safe.fingerprint, mark, state)
            if end.ready is None:
                self._keep_for_others(end, state, piece)

    def _keep_for_others(self, end: _PieceEnd, state: bytes, piece: bytes) -> None:
        if self._cache is None:
            return
        try:
            self._cache.put(end.safe.fingerprint, state, self._key(end.num_frames), piece)
        except OSError as problem:  # a film does not fail because other films cannot use its chunks
            self.cache_problem, self._cache = problem, None

    def _key(self, num_frames: int) -> str:
        return f"{self._pieces.key}-{num_frames}"
