"""Encodes a *piece*: a chunk's frames as bytes that fit into any film of the same encoding.

A piece of a film file is a fragmented MP4 of its own, from one short run of ffmpeg: it begins with a key frame and
refers to nothing before it, so that a film does not show where it was interrupted. A piece of a picture folder is its
PNG files one after another. `stop` may be called from another thread, and ends a running `write` soon.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from helios_cli.errors import MachineError
from helios_cli.film import ffmpeg
from helios_cli.film.disk import disk_errors
from helios_cli.film.target import Target

if TYPE_CHECKING:
    import numpy as np

PNG_LEVEL = 3
"""The zlib level: twice the speed of the default 6 for a fifth more bytes."""


class VideoEncoder:
    """An ffmpeg that reads raw frames and writes into a file without a name, which a killed process leaves nowhere."""

    def __init__(self, target: Target, options: Sequence[str]) -> None:
        self._target = target
        with disk_errors(target.partial):
            # Unbuffered: two threads may close it at the same time. `finish` or `stop` does.
            self._piece = tempfile.TemporaryFile(buffering=0, dir=target.path.parent)  # noqa: SIM115
        self._ffmpeg = ffmpeg.Process(
            [*options, f"pipe:{self._piece.fileno()}"],
            doing=f"writing {target.path}",
            stdin=subprocess.PIPE,
            pass_fds=(self._piece.fileno(),),
        )

    def write(self, frames: np.ndarray) -> None:
        try:
            self._ffmpeg.write(frames.data)
        except BrokenPipeError as error:
            raise self._ffmpeg.failure(self._ffmpeg.wait()) from error

    def finish(self, num_frames: int) -> bytes:
        self._ffmpeg.close_input()
        self._ffmpeg.complete()
        if self._ffmpeg.num_frames != num_frames:
            raise MachineError(f"ffmpeg wrote {self._ffmpeg.num_frames} of {num_frames} frames to {self._target.path}")
        with self._piece as piece:
            piece.seek(0)
            return piece.read()

    def stop(self) -> None:
        self._ffmpeg.kill()
        self._ffmpeg.close_input()
        self._piece.close()


class PictureEncoder:
    """Makes PNG pictures."""

    def __init__(self) -> None:
        self._pictures: list[bytes] = []
        self._is_stopped = False

    def write(self, frames: np.ndarray) -> None:
        from PIL import Image  # needed only where pictures are written

        for frame in frames:
            if self._is_stopped:
                return
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "PNG", compress_level=PNG_LEVEL)
            self._pictures.append(picture.getvalue())

    def finish(self, num_frames: int) -> bytes:
        return b"".join(self._pictures)

    def stop(self) -> None:
        self._is_stopped = True


Encoder = VideoEncoder | PictureEncoder
