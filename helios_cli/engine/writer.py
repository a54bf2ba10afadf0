"""Frames into a film: an .mp4 or .mkv through ffmpeg, or a folder of PNG pictures.

A thread hands the frames on, so that encoding overlaps rendering; a bounded queue makes a slow encoder hold the
renderer back instead of filling memory. The film grows under `<name>.partial.<ext>` beside its target and takes the
target's name only when it is whole, so a file under that name is never broken.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, PngImagePlugin

from helios_cli.engine import ffmpeg
from helios_cli.errors import InputError, MachineError

QUEUE_BYTES = 128 * 2**20
PNG_LEVEL = 3
"""zlib level: twice the speed of the default 6 for a fifth more bytes."""

FRAME_NAME = re.compile(r"frame_\d{6,}\.png")


@dataclass(frozen=True)
class Target:
    """Where a film goes. `kind` is "mp4", "mkv" or "png" (a folder); `path` is absolute."""

    path: Path
    kind: str

    @classmethod
    def of(cls, path: str | os.PathLike) -> Target:
        """Read the kind off the name. A str that ends in "/", an existing folder, or no extension means a folder."""
        text = os.fspath(path)
        absolute = Path(os.path.abspath(text))
        suffix = absolute.suffix.lower()
        if text.endswith(("/", os.sep)) or absolute.is_dir() or not suffix:
            return cls(absolute, "png")
        if suffix not in (".mp4", ".mkv"):
            raise InputError(
                f"{text}: films are not written as {suffix}",
                hint="end the name in .mp4 (H.264), .mkv (lossless), or / (a folder of PNG pictures)",
            )
        return cls(absolute, suffix[1:])

    @property
    def partial(self) -> Path:
        """The name while the film is being written: the same each time, so what a killed run left is overwritten."""
        return self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")


def check_target(path: str | os.PathLike, *, force: bool) -> Target:
    """Find before a render whether its film can be put at `path`; InputError says why not. Writes nothing."""
    target = Target.of(path)
    folder = target.path.parent
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist", hint=f"run `mkdir -p {shlex.quote(str(folder))}`")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder {folder} is not writable", hint="choose another place with -o")
    holds_film = _holds_frames if target.kind == "png" else _exists
    try:
        taken = holds_film(target.path)
        holds_film(target.partial)
    except OSError as error:  # the partial name may be too long where the name itself is not
        raise InputError(f"cannot write {path}: {error.strerror}", hint="choose another name with -o") from error
    if taken and not force:
        raise InputError(f"{path} exists", hint="add --force to replace it, or choose another name with -o")
    return target


def _exists(path: Path) -> bool:
    """As Path.exists, but a link to nowhere counts, and a name that cannot be is an OSError."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _holds_frames(folder: Path) -> bool:
    """Whether the folder has frames of an earlier film; InputError if it has, or is, anything else.

    A folder is replaced as a whole, so one with other files in it is never a target, not even by --force.
    """
    if not _exists(folder):
        return False
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder", hint="end the name in .mp4 or .mkv, or choose another one with -o"
        )
    names = os.listdir(folder)
    foreign = next((name for name in sorted(names) if not FRAME_NAME.fullmatch(name)), None)
    if foreign:
        raise InputError(
            f"the folder {folder} holds other files ({foreign})", hint="name a new or empty folder with -o"
        )
    return bool(names)


def open_writer(
    path: str | os.PathLike,
    *,
    size: tuple[int, int],
    fps: float,
    codec: str = "h264",
    crf: int = 17,
    preset: str = "medium",
    metadata: Mapping[str, str] | None = None,
    queue_bytes: int = QUEUE_BYTES,
) -> FilmWriter:
    """Start a film at `path` of `size` (width, height) pixels; use it as a context manager.

    What is at `path` stays until `close` replaces it; see `check_target` and `check_encoding` for looking first.
    `metadata` is kept in the file (in every picture of a folder); `codec`, `crf` and `preset` count for .mp4 only.
    At most `queue_bytes` of frames wait for the encoder, or one array of frames where a single one is larger.
    """
    target = check_target(path, force=True)
    encoding = ffmpeg.Encoding(codec, crf, preset)
    if not 1 <= fps <= 1000:
        raise InputError(f"{fps} frames per second cannot be written", hint="write a rate from 1 to 1000")
    if target.kind == "mp4" and (size[0] % 2 or size[1] % 2):
        raise InputError(f"an .mp4 cannot be {size[0]}x{size[1]}: both must be even", hint="write an even --size")
    if target.kind == "png":
        sink = _PictureFolder(target, metadata or {})
    else:
        sink = _EncodedFile(target, size, fps, encoding, metadata or {})
    return FilmWriter(target, sink, size, queue_bytes)


class FilmWriter:
    """A film that is being written. Leaving the `with` block closes it, an exception in the block aborts it.

    `num_frames` counts the frames given so far.
    """

    def __init__(self, target: Target, sink: _Sink, size: tuple[int, int], queue_bytes: int) -> None:
        self.target = target
        self.num_frames = 0
        self._sink = sink
        self._shape = (size[1], size[0], 3)
        self._limit = queue_bytes
        self._changed = threading.Condition()
        self._waiting: deque[np.ndarray] = deque()
        self._held_bytes = 0  # waiting, or being handed over
        self._failure: Exception | None = None
        self._ended = False
        self._closed = False
        self._thread = threading.Thread(target=self._hand_over_all, name="film writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frames: np.ndarray) -> None:
        """Take uint8 frames [T, H, W, 3], C-contiguous, by reference: the array must not change afterwards.

        Returns at once unless the queue is full. Raises what stopped the encoder if it has stopped.
        """
        if self._ended:
            raise ValueError("the film is closed")
        good = frames.dtype == np.uint8 and frames.shape[1:] == self._shape and frames.flags.c_contiguous
        if not good or not len(frames):
            raise ValueError(f"frames must be contiguous uint8 [T, {self._shape}], not {frames.dtype} {frames.shape}")
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self._has_room(frames.nbytes))
            if self._failure:
                raise self._failure
            self._waiting.append(frames)
            self._held_bytes += frames.nbytes
            self._changed.notify_all()
        self.num_frames += len(frames)

    def close(self) -> Path:
        """Wait for the last frame, make sure that the film is whole and on disk, give it its name; return that.

        If anything is wrong the film is removed and the reason raised.
        """
        if self._closed:
            return self.target.path
        try:
            if not self.num_frames:
                raise ValueError("no frames were written")
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._thread.join()
            if self._failure:
                raise self._failure
            self._sink.finish(self.num_frames)
        except BaseException:
            self.abort()
            raise
        self._closed = True
        _publish(self.target)
        return self.target.path

    def abort(self) -> None:
        """Stop at once and remove what was written. Does nothing after `close`."""
        if self._closed:
            return
        self._closed = True
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()
        self._sink.stop()
        self._thread.join()
        self._sink.remove()

    def _has_room(self, num_bytes: int) -> bool:
        return not self._held_bytes or self._held_bytes + num_bytes <= self._limit

    def _hand_over_all(self) -> None:
        try:
            while self._hand_over_next():
                pass
        except Exception as failure:
            with self._changed:
                self._failure = failure
                self._waiting.clear()
                self._changed.notify_all()

    def _hand_over_next(self) -> bool:
        """One array to the sink; False at the end. A method of its own, so that no reference outlives the turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if not self._waiting:
                return False
            frames = self._waiting.popleft()
        self._sink.write(frames)
        with self._changed:
            self._held_bytes -= frames.nbytes
            self._changed.notify_all()
        return True


class _Sink(Protocol):
    """Where the writer's thread puts frames. `write` runs in that thread, the rest in the caller's."""

    def write(self, frames: np.ndarray) -> None: ...

    def finish(self, num_frames: int) -> None:
        """After the last `write`: complete the partial film, check it and sync it to disk."""

    def stop(self) -> None:
        """Make a running `write` end soon."""

    def remove(self) -> None:
        """Remove the partial film, after `stop` and the end of `write`."""


class _EncodedFile:
    """An ffmpeg that reads raw frames and writes the partial file."""

    def __init__(
        self, target: Target, size: tuple[int, int], fps: float, encoding: ffmpeg.Encoding, metadata: Mapping[str, str]
    ) -> None:
        self._target = target
        with _disk_errors(target.partial), tempfile.TemporaryFile("w+", encoding="utf-8") as text:
            # An encoder whose parent was killed may still be finishing a file of this name: it must keep its own.
            target.partial.unlink(missing_ok=True)
            text.write(_ffmetadata(metadata))
            text.seek(0)
            arguments = [
                *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{size[0]}x{size[1]}"),
                *("-framerate", f"{ffmpeg.frame_rate(fps)}", "-i", "pipe:0"),
                *("-f", "ffmetadata", "-i", f"pipe:{text.fileno()}", "-map_metadata", "1"),
                *("-map", "0:v", "-fps_mode", "passthrough"),
                *(ffmpeg.mkv_arguments() if target.kind == "mkv" else ffmpeg.mp4_arguments(encoding)),
                *("-y", ffmpeg.file_argument(target.partial)),
            ]
            self._ffmpeg = ffmpeg.Process(arguments, stdin=subprocess.PIPE, pass_fds=(text.fileno(),))

    def write(self, frames: np.ndarray) -> None:
        try:
            self._ffmpeg.stdin.write(memoryview(frames).cast("B"))
        except BrokenPipeError as error:
            raise self._failure(self._ffmpeg.wait()) from error

    def finish(self, num_frames: int) -> None:
        self._close_input()
        status = self._ffmpeg.wait()
        if status:
            raise self._failure(status)
        if self._ffmpeg.num_frames != num_frames:
            raise MachineError(f"ffmpeg wrote {self._ffmpeg.num_frames} of {num_frames} frames to {self._target.path}")
        with _disk_errors(self._target.partial):
            _sync(self._target.partial)

    def stop(self) -> None:
        self._ffmpeg.kill()

    def remove(self) -> None:
        self._close_input()
        self._target.partial.unlink(missing_ok=True)

    def _close_input(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # an ffmpeg that has ended says why by its status
            self._ffmpeg.stdin.close()

    def _failure(self, status: int) -> MachineError:
        return self._ffmpeg.failure(status, f"writing {self._target.path}")


def _ffmetadata(metadata: Mapping[str, str]) -> str:
    """The text form of metadata that ffmpeg reads: an argument could not exceed 128 KiB, and any user sees those."""
    lines = (f"{_escape(key)}={_escape(value)}\n" for key, value in metadata.items())
    return ";FFMETADATA1\n" + "".join(lines)


def _escape(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)


class _PictureFolder:
    """A folder of `frame_000001.png` and so on."""

    def __init__(self, target: Target, metadata: Mapping[str, str]) -> None:
        self._target = target
        self._text = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            self._text.add_itxt(key, value, zip=True)
        self._stopped = False
        self._written = 0
        with _disk_errors(target.partial):
            if target.partial.exists():
                shutil.rmtree(target.partial)
            target.partial.mkdir()

    def write(self, frames: np.ndarray) -> None:
        for frame in frames:
            if self._stopped:
                return
            self._written += 1
            path = self._target.partial / f"frame_{self._written:06d}.png"
            with _disk_errors(path), path.open("wb") as file:
                Image.fromarray(frame).save(file, "PNG", compress_level=PNG_LEVEL, pnginfo=self._text)
                file.flush()
                os.fsync(file.fileno())

    def finish(self, num_frames: int) -> None:
        with _disk_errors(self._target.partial):
            _sync(self._target.partial)

    def stop(self) -> None:
        self._stopped = True

    def remove(self) -> None:
        shutil.rmtree(self._target.partial)


def _publish(target: Target) -> None:
    """Give the whole film its name. If that fails the film stays under the partial name, and the error says so."""
    try:
        if target.kind == "png" and _holds_frames(target.path):
            with tempfile.TemporaryDirectory(dir=target.path.parent, prefix=".helios-") as replaced:
                os.rename(target.path, Path(replaced) / "frames")
                os.rename(target.partial, target.path)
        else:
            os.replace(target.partial, target.path)
        _sync(target.path.parent)
    except (OSError, InputError) as error:
        raise MachineError(
            f"the film is complete but could not be named {target.path}: {error}",
            hint=f"run `mv {shlex.quote(str(target.partial))} {shlex.quote(str(target.path))}`",
        ) from error


def _sync(path: Path) -> None:
    """Have the file's data, or the folder's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space, or write elsewhere with -o, and run it again",
        ) from error
