"""A chunk's frames made into a *piece*: bytes that fit into any film of the same encoding.

A piece of a film file is a fragmented MP4 of its own, from one short run of ffmpeg: it begins with a key frame and
refers to nothing before it, so that a film does not show where it was interrupted. A piece of a picture folder is its
PNG files one after another.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tempfile
from typing import Protocol

import numpy as np

from helios_cli.errors import MachineError
from helios_cli.film import ffmpeg
from helios_cli.film.disk import disk_errors
from helios_cli.film.target import Target

PIECE_VERSION = 1
"""Raised with every change of helios that moves a byte of a piece."""

PNG_LEVEL = 3
"""zlib level: twice the speed of the default 6 for a fifth more bytes."""


class Encoder(Protocol):
    """One piece in the making. `stop` may be called from another thread, and makes a running `write` end soon."""

    def write(self, frames: np.ndarray) -> None: ...

    def finish(self, num_frames: int) -> bytes: ...

    def stop(self) -> None: ...


class Encodings(Protocol):
    """How a film's pieces are made. `key` stands for everything but the frames that decides a piece's bytes; `name` is
    for people."""

    key: str
    name: str

    def encoder(self) -> Encoder: ...


class VideoPieces:
    """Pieces by ffmpeg, compressed by `encoding`, or lossless where that is None."""

    def __init__(self, target: Target, size: tuple[int, int], fps: float, encoding: ffmpeg.Encoding | None) -> None:
        self._target, rate = target, ffmpeg.frame_rate(fps)
        self._input = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{size[0]}x{size[1]}"]
        self._input += ["-framerate", f"{rate}", "-i", "pipe:0", *ffmpeg.every_frame()]
        self._output = ffmpeg.piece_arguments(encoding, rate)
        self.name = f"{encoding.codec} crf {encoding.crf} {encoding.preset}" if encoding else "lossless"
        self.key = _key(ffmpeg.program().version, *self._input, *self._output)

    def encoder(self) -> Encoder:
        return _VideoEncoder(self._target, self._input, self._output)


class _VideoEncoder:
    """An ffmpeg that reads raw frames and writes into a file without a name, which a killed process leaves nowhere."""

    def __init__(self, target: Target, input_options: list[str], output_options: list[str]) -> None:
        self._target = target
        with disk_errors(target.partial):
            self._piece = tempfile.TemporaryFile(dir=target.path.parent)  # noqa: SIM115 (closed by `finish` or `stop`)
        output = f"pipe:{self._piece.fileno()}"
        self._ffmpeg = ffmpeg.Process(
            [*input_options, *output_options, output],
            doing=f"writing {target.path}",
            stdin=subprocess.PIPE,
            pass_fds=(self._piece.fileno(),),
        )

    def write(self, frames: np.ndarray) -> None:
        try:
            self._ffmpeg.write(memoryview(frames))
        except BrokenPipeError as error:
            raise self._ffmpeg.failure(self._ffmpeg.wait()) from error

    def finish(self, num_frames: int) -> bytes:
        self._ffmpeg.close_input()
        status = self._ffmpeg.wait()
        if status:
            raise self._ffmpeg.failure(status)
        if self._ffmpeg.num_frames != num_frames:
            raise MachineError(f"ffmpeg wrote {self._ffmpeg.num_frames} of {num_frames} frames to {self._target.path}")
        with self._piece as piece:
            piece.seek(0)
            return piece.read()

    def stop(self) -> None:
        self._ffmpeg.kill()
        self._ffmpeg.close_input()
        self._piece.close()


class PicturePieces:
    """Pieces of PNG pictures."""

    def __init__(self) -> None:
        self.name = "PNG"
        self.key = _key("png", PNG_LEVEL)

    def encoder(self) -> Encoder:
        return _PictureEncoder()


class _PictureEncoder:
    def __init__(self) -> None:
        self._pictures: list[bytes] = []
        self._stopped = False

    def write(self, frames: np.ndarray) -> None:
        from PIL import Image  # which a film that is not written can do without

        for frame in frames:
            if self._stopped:
                return
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "PNG", compress_level=PNG_LEVEL)
            self._pictures.append(picture.getvalue())

    def finish(self, num_frames: int) -> bytes:
        return b"".join(self._pictures)

    def stop(self) -> None:
        self._stopped = True


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([PIECE_VERSION, *parts]).encode()).hexdigest()[:16]
