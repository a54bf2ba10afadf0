"""Reads the frames of a film one after another, for measuring: reduced, and their luma at full size.

Every frame is reduced to at most 160 pixels on its long side by averaging areas. That leaves means over the picture as
they are, removes grain and the coder's noise, which would count as motion, and makes films of different sizes
comparable. What is measured of a picture's detail needs the frame as it is, up to 1920 pixels.
"""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from helios_cli.check.layout import read_sidecar
from helios_cli.errors import InputError
from helios_cli.files import by_number
from helios_cli.film import ffmpeg, reading
from helios_cli.film.media import read_picture
from helios_cli.units import DEFAULT_FPS

ANALYSIS_SIDE = 160
"""Longest side in pixels of a reduced frame."""

DETAIL_SIDE = 1920
"""Longest side in pixels at which detail is measured. A larger frame is reduced to it, so that measuring a 4K film does
not take many times as long as decoding it."""

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""BT.709 weights of red, green and blue."""

COUNTED = "setpts=N/TB"
"""The filter that gives frames the seconds 0, 1, 2 as times. Files have times twice and in disorder, of which ffmpeg
would complain as it does of damage."""


class Frame(NamedTuple):
    """A frame to measure: `reduced`, uint8 [h, w, 3], and its `luma` at full size, uint8 [h, w] in full range."""

    reduced: np.ndarray
    luma: np.ndarray


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

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, all of one size. InputError if there are none, or ffmpeg gives up."""
        reduced = f"scale={_size(ANALYSIS_SIDE)}:flags=area+accurate_rnd+full_chroma_int,format=rgb24,{COUNTED}"
        streams = ["-filter:v:0", reduced, "-c:v:0", "ppm"]
        streams += ["-map", "0:v:0", "-filter:v:1", f"{self._luma()},{COUNTED}", "-c:v:1", "pgm"]
        colors: deque[np.ndarray] = deque()
        lumas: deque[np.ndarray] = deque()
        for picture in self._decoded(streams):  # one of each in turn, or nearly so
            (lumas if picture.ndim == 2 else colors).append(picture)
            if colors and lumas:
                yield Frame(colors.popleft(), lumas.popleft())

    def pictures(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames in order, 8-bit RGB in full size, uint8 [h, w, 3], one in memory. Errors as in `frames`."""
        filters = f"scale=flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24,{COUNTED}"
        yield from self._decoded(["-vf", filters, "-c:v", "ppm"])

    def _decoded(self, streams: list[str]) -> Iterator[np.ndarray]:
        # PPM and PGM have the size of each picture, which only ffmpeg knows after rotation and uneven pixels.
        output = [*streams, *ffmpeg.every_frame(), "-f", "image2pipe", "-flush_packets", "1"]
        is_empty = True
        with reading.decoder(self.path, *output) as decoder:
            while (frame := _read_picture(decoder.stdout)) is not None:
                is_empty = False
                yield frame
            status = decoder.wait()
            if status < 0:
                raise decoder.failure(status)
            if status or is_empty:
                raise reading.undecodable(self.path, decoder)
            self.damage = decoder.messages() or None

    def _luma(self) -> str:
        """Return the filters that make luma of a frame."""
        # Luma stays as it was coded. Colours without any get that of BT.709, as the films of helios have.
        pix_fmt = reading.probe(self.path).pix_fmt
        matrix = ":out_color_matrix=bt709" if re.search("rgb|bgr|gbr|pal8", pix_fmt) else ""
        scale = f"scale={_size(DETAIL_SIDE)}:flags=area+accurate_rnd:out_range=pc{matrix}"
        # A scale to gray would leave the range as it is.
        return f"{scale},format=yuv420p|yuv422p|yuv444p,extractplanes=y"


def _size(side: int) -> str:
    """Return the scale filter's options for at most `side` pixels on the long side. Nothing is enlarged."""
    # `dar` is the aspect as shown. No side gets 0 pixels.
    side_of = f"min({side},max(iw,ih))"
    return f"w='max(1,round({side_of}*min(1,dar)))':h='max(1,round({side_of}*min(1,1/dar)))'"


def _read_picture(stream: IO[bytes]) -> np.ndarray | None:
    """Read the next picture of PPM or PGM, or None at the end."""
    kind = stream.readline()
    if not kind:
        return None
    size, _ = stream.readline(), stream.readline()
    width, height = map(int, size.split())
    shape = (height, width) if kind.strip() == b"P5" else (height, width, 3)
    length = int(np.prod(shape))
    pixels = stream.read(length)
    return np.frombuffer(pixels, np.uint8).reshape(shape) if len(pixels) == length else None


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
        self._files = [path / name for name in sorted(names, key=by_number)]
        self.width, self.height = read_picture(self._files[0]).size
        sidecar = read_sidecar(path)
        fps = sidecar.fps if sidecar and sidecar.num_frames == len(names) else None
        self.fps = float(ffmpeg.frame_rate(fps or DEFAULT_FPS))
        self.knows_rate = fps is not None

    def frames(self) -> Iterator[Frame]:
        """Yield frames as `VideoFile.frames` does. InputError names a picture that cannot be read."""
        size = _reduced(self.width, self.height, ANALYSIS_SIDE)
        for file in self._files:
            picture = read_picture(file)
            yield Frame(np.asarray(picture.resize(size, Image.Resampling.BOX)), _luma(picture))

    def pictures(self) -> Generator[np.ndarray, None, None]:
        """Yield frames as `VideoFile.pictures` does. InputError names a picture that cannot be read."""
        for file in self._files:
            yield np.asarray(read_picture(file))


def _reduced(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _luma(picture: Image.Image) -> np.ndarray:
    size = _reduced(*picture.size, DETAIL_SIDE)
    pixels = np.asarray(picture if size == picture.size else picture.resize(size, Image.Resampling.BOX))
    return np.rint(pixels.astype(np.float32) @ LUMA).astype(np.uint8)
