"""Reads the frames of a film one after another, reduced for measuring.

Every frame is reduced to at most 160 pixels on its long side by averaging areas. That leaves means over the picture as
they are, removes grain and the coder's noise, which would count as motion, and makes films of different sizes
comparable.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from helios_cli.check.layout import read_sidecar
from helios_cli.errors import InputError
from helios_cli.film import ffmpeg, reading
from helios_cli.film.media import read_picture
from helios_cli.units import DEFAULT_FPS

ANALYSIS_SIDE = 160
"""Longest side in pixels of a measured frame."""


def open_footage(path: str | os.PathLike) -> VideoFile | PictureFolder:
    """Open the film at `path`: a file that ffmpeg reads, or a folder of PNG pictures. InputError if it is neither."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    return PictureFolder(Path(path)) if stat.S_ISDIR(mode) else VideoFile(Path(path))


class VideoFile:
    """A file that ffmpeg reads.

    Attributes:
        width, height: coded size in pixels, before rotation.
        fps, knows_rate: average rate; 24 if the file has none, which `knows_rate` tells.
        damage: ffmpeg's complaints while it decoded, or None; set when `frames` is exhausted.
    """

    def __init__(self, path: Path) -> None:
        info = reading.probe(path)
        self.path = path
        self.width, self.height = info.width, info.height
        self.fps = float(ffmpeg.frame_rate(info.fps)) or float(DEFAULT_FPS)
        self.knows_rate = info.fps > 0
        self.damage: str | None = None

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames in order, reduced, uint8 [h, w, 3], all of one size, one in memory.

        InputError if there are none, or ffmpeg gives up.
        """
        # `dar` is the aspect as shown. Nothing is enlarged, and no side gets 0 pixels.
        side = f"min({ANALYSIS_SIDE},max(iw,ih))"
        width, height = f"max(1,round({side}*min(1,dar)))", f"max(1,round({side}*min(1,1/dar)))"
        reduced = f"scale=w='{width}':h='{height}':flags=area+accurate_rnd+full_chroma_int,format=rgb24"
        yield from self._decoded(reduced)

    def _decoded(self, filters: str) -> Iterator[np.ndarray]:
        # PPM has the size of each picture, which only ffmpeg knows after rotation and uneven pixels.
        output = ["-vf", filters, *ffmpeg.every_frame(), "-f", "image2pipe", "-c:v", "ppm"]
        is_empty = True
        with reading.decoder(self.path, *output) as decoder:
            while (frame := _read_ppm(decoder.stdout)) is not None:
                is_empty = False
                yield frame
            status = decoder.wait()
            if status < 0:
                raise decoder.failure(status)
            if status or is_empty:
                raise reading.undecodable(self.path, decoder)
            self.damage = decoder.messages() or None

    def pictures(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames in order, 8-bit RGB in full size, uint8 [h, w, 3], one in memory. Errors as in `frames`."""
        yield from self._decoded("scale=flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24")


def _read_ppm(stream: IO[bytes]) -> np.ndarray | None:
    """Read the next picture, or None at the end."""
    if not stream.readline():
        return None
    size, _ = stream.readline(), stream.readline()
    width, height = map(int, size.split())
    pixels = stream.read(width * height * 3)
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3) if len(pixels) == width * height * 3 else None


class PictureFolder:
    """A folder of PNG pictures, in the order of the numbers in their names. Its rate is that of a sidecar for as many
    pictures, else 24."""

    damage = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names = [name for name in os.listdir(path) if name.lower().endswith(".png")]
        except OSError as error:
            raise InputError(f"cannot read the folder {path}: {error.strerror}", hint="check the path") from error
        if not names:
            raise InputError(f"the folder {path} holds no .png pictures", hint="name a film, or a folder of frames")
        self._files = [path / name for name in sorted(names, key=_by_number)]
        self.width, self.height = read_picture(self._files[0]).size
        sidecar = read_sidecar(path)
        fps = sidecar.fps if sidecar and sidecar.num_frames == len(names) else None
        self.fps = float(ffmpeg.frame_rate(fps or DEFAULT_FPS))
        self.knows_rate = fps is not None

    def frames(self) -> Iterator[np.ndarray]:
        """Yield frames as `VideoFile.frames` does. InputError names a picture that cannot be read."""
        scale = min(1.0, ANALYSIS_SIDE / max(self.width, self.height))
        size = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        for file in self._files:
            yield np.asarray(read_picture(file).resize(size, Image.Resampling.BOX))

    def pictures(self) -> Generator[np.ndarray, None, None]:
        """Yield frames as `VideoFile.pictures` does. InputError names a picture that cannot be read."""
        for file in self._files:
            yield np.asarray(read_picture(file))


def _by_number(name: str) -> list[str | int]:
    """Return a sorting key by which `frame_10` comes after `frame_9`; text and numbers alternate in it."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
