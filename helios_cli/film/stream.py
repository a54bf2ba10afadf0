"""Streams a film to standard output while it is rendered (`-o -`): its pieces, in a container that needs no end.

Nothing of it is written to disk. A reader that is slow, or paused, holds the renderer back: pipes are short.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from helios_cli.errors import MachineError, ReaderGone
from helios_cli.film import ffmpeg
from helios_cli.film.cache import Cache
from helios_cli.film.compression import TO_BT709, Encoding
from helios_cli.film.encoding import PieceEnd, PieceWriter
from helios_cli.film.growing import GrowingFile, Mark, growing_film
from helios_cli.film.resume import Resumed, Wanted
from helios_cli.film.sound import Track
from helios_cli.film.sound_pieces import SoundPieces
from helios_cli.film.target import Target
from helios_cli.recipe.options import STREAM

DEFAULT_CONTAINER = "mkv"

PIPE_BYTES = 4096
"""Bytes that a pipe takes without waiting once it is writable: PIPE_BUF of Linux."""

MUXED: Mapping[str, tuple[str, ...]] = {
    # By default a cluster is written when it has a second of film.
    "mkv": ("-c", "copy", "-cluster_time_limit", "0", "-f", "matroska"),
    "ts": ("-c", "copy", "-muxdelay", "0", "-muxpreload", "0", "-f", "mpegts"),
    "y4m": ("-vf", TO_BT709, "-f", "yuv4mpegpipe"),
}
"""ffmpeg's output options of the containers, except for mp4: pieces are fragments of one already."""

CONTAINERS = ("mkv", "mp4", "ts", "y4m")


def take_stdout() -> int:
    """Return standard output for a stream alone. From now on, what is printed there goes to standard error."""
    sys.stdout.flush()
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def open_stream(
    descriptor: int,
    container: str,
    *,
    size: tuple[int, int],
    fps: float,
    encoding: Encoding,
    preview: str = "",
    track: Track | None = None,
    num_frames: int | None = None,
) -> StreamWriter:
    """Begin a stream; its writer closes the descriptor at the end. It has `num_frames` if that is known, and its sound
    ends with them. The rest is as for `open_writer`."""
    kind = "mkv" if container == "y4m" else "mp4"  # the film without loss
    place = Target(Path(tempfile.gettempdir(), "stream"), kind)
    film = growing_film(place, size, fps, encoding, preview=preview)
    assert isinstance(film, GrowingFile), "only folders are other films"
    sound = film.sound_pieces(track, num_frames=num_frames) if track else None
    pipe = _Fragments(descriptor) if container == "mp4" else _Muxer(descriptor, MUXED[container])
    return StreamWriter(film, size, pipe, descriptor, sound)


class StreamWriter(PieceWriter):
    """A film that goes down a pipe, and of which only the cache keeps anything.

    Attributes:
        safe_chunks: the number of chunks that are in the cache.
    """

    def __init__(
        self,
        film: GrowingFile,
        size: tuple[int, int],
        pipe: _Fragments | _Muxer,
        descriptor: int,
        sound: SoundPieces | None = None,
    ) -> None:
        super().__init__(Target(Path(STREAM), "stream"), film, size)
        self._file, self._pipe, self._descriptor, self._sound = film, pipe, descriptor, sound
        self.safe_chunks = 0
        threading.Thread(target=self._watch, name="reader of the stream", daemon=True).start()

    def resume(self, wanted: Wanted, cache: Cache | None) -> Resumed:
        """Begin: a stream has no earlier run, except in the cache."""
        if self.feed:
            self.feed.begin()
        self._start(cache)
        return Resumed()

    def _finish(self) -> None:
        self._pipe.finish()

    def _drain(self, seconds: float) -> None:
        """Send what is encoded already down the pipe, if there is a reader who takes it soon."""
        stopping = threading.Timer(seconds, self._pipe.stop)
        stopping.start()
        super()._drain(seconds)
        if self._failure is None:
            with contextlib.suppress(ReaderGone, MachineError):
                self._pipe.finish()
        stopping.cancel()

    def _leave(self, *, is_whole: bool) -> None:
        self._pipe.stop()
        if self._sound:
            self._sound.close()
        os.close(self._descriptor)

    def _keep(self, piece: bytes, end: PieceEnd) -> bytes | None:
        data = self._file.placed(piece, end.num_frames)
        if self._sound:
            data = self._sound.joined(data, self._file.num_frames)
        try:
            self._pipe.write(data)
        except ReaderGone as gone:  # the chunk is kept all the same
            self._fail(gone)
        if self.feed:
            self.feed.add(Mark(end.num_frames, 0, ""))
        if end.safe is None or self._cache is None:
            return None
        self.safe_chunks += 1
        return end.safe.save()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._end_feed()

    def _watch(self) -> None:
        """Notice that the reader has gone while nothing is written."""
        while not self._is_closed:
            if is_closed(self._descriptor, 500):
                self._fail(ReaderGone())
                return


class _Fragments:
    """Passes fragments on as they are."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_stopped = False

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        writable = select.poll()
        writable.register(self._descriptor, select.POLLOUT)
        while rest:
            if self._is_stopped:
                raise ReaderGone()
            if writable.poll(500):
                try:
                    rest = rest[os.write(self._descriptor, rest[:PIPE_BYTES]) :]
                except BrokenPipeError:
                    raise ReaderGone() from None

    def finish(self) -> None:
        """Do nothing: the fragments are the stream."""

    def stop(self) -> None:
        self._is_stopped = True


class _Muxer:
    """An ffmpeg that puts fragments into another container, on its way to the reader."""

    def __init__(self, descriptor: int, output: tuple[str, ...]) -> None:
        self._descriptor = descriptor
        reading = ["-probesize", "32", "-analyzeduration", "0", "-thread_type", "slice", "-f", "mov", "-i", "pipe:0"]
        self._ffmpeg = ffmpeg.Process(
            [*reading, "-map", "0", *ffmpeg.every_frame(), *output, "-flush_packets", "1", "pipe:1"],
            doing="writing the stream",
            stdin=subprocess.PIPE,
            stdout=descriptor,
            patience=None,
        )

    def write(self, data: bytes) -> None:
        try:
            self._ffmpeg.write(data)
        except BrokenPipeError:
            self.finish()
            raise ReaderGone() from None

    def finish(self) -> None:
        """Wait until the reader has everything."""
        self._ffmpeg.close_input()
        if status := self._ffmpeg.wait():
            raise ReaderGone() if is_closed(self._descriptor) else self._ffmpeg.failure(status)

    def stop(self) -> None:
        self._ffmpeg.kill()


def is_closed(descriptor: int, milliseconds: int = 0) -> bool:
    """Return whether nobody reads at the other end of a pipe any more, at the latest after so many milliseconds."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(milliseconds))
