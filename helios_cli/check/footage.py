"""Reads the frames of a film one after another, for measuring: reduced, and their luma at full size.

Every frame is reduced to at most 160 pixels on its long side by averaging areas. That leaves means over the picture as
they are, removes grain and the coder's noise, which would count as motion, and makes films of different sizes
comparable. What is measured of a picture's detail needs the frame as it is, up to 1920 pixels.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO

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

Watcher = Callable[[np.ndarray], None]
"""Takes the luma of each frame, uint8 [h, w] in full range, in order."""


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

    def frames(self, watch_luma: Watcher | None = None) -> Iterator[np.ndarray]:
        """Yield the frames in order, reduced, uint8 [h, w, 3], all of one size, one in memory.

        `watch_luma` is called for every frame, in another thread; when the frames end, it has seen them all.
        InputError if there are none, or ffmpeg gives up.
        """
        # `dar` is the aspect as shown. Nothing is enlarged, and no side gets 0 pixels.
        reduced = f"scale={_size(ANALYSIS_SIDE)}:flags=area+accurate_rnd+full_chroma_int,format=rgb24"
        with _Luma(self._luma_filter(), watch_luma) as luma:
            yield from self._decoded(reduced, luma)

    def pictures(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames in order, 8-bit RGB in full size, uint8 [h, w, 3], one in memory. Errors as in `frames`."""
        with _Luma("null", None) as luma:
            yield from self._decoded("scale=flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24", luma)

    def _decoded(self, filters: str, luma: _Luma) -> Iterator[np.ndarray]:
        # PPM has the size of each picture, which only ffmpeg knows after rotation and uneven pixels.
        output = [*luma.output, "-vf", filters, *_pictures("ppm")]
        is_empty = True
        with reading.decoder(self.path, *output, pass_fds=luma.pass_fds) as decoder:
            luma.start()
            while (frame := _read_picture(decoder.stdout)) is not None:
                is_empty = False
                yield frame
            status = decoder.wait()
            if status < 0:
                raise decoder.failure(status)
            if status or is_empty:
                raise reading.undecodable(self.path, decoder)
            self.damage = decoder.messages() or None
            luma.finish()

    def _luma_filter(self) -> str:
        # Luma stays as it was coded. Colours without any get that of BT.709, as the films of helios have.
        pix_fmt = reading.probe(self.path).pix_fmt
        matrix = ":out_color_matrix=bt709" if re.search("rgb|bgr|gbr|pal8", pix_fmt) else ""
        scale = f"scale={_size(DETAIL_SIDE)}:flags=area+accurate_rnd:out_range=pc{matrix}"
        # A scale to gray would leave the range as it is.
        return f"{scale},format=yuv420p|yuv422p|yuv444p,extractplanes=y"


def _size(side: int) -> str:
    """Return the scale filter's options for at most `side` pixels on the long side."""
    side_of = f"min({side},max(iw,ih))"
    return f"w='max(1,round({side_of}*min(1,dar)))':h='max(1,round({side_of}*min(1,1/dar)))'"


def _pictures(encoder: str) -> list[str]:
    return [*ffmpeg.every_frame(), "-f", "image2pipe", "-c:v", encoder, "-flush_packets", "1"]


class _Luma:
    """A second output of a decoder, that a thread reads: ffmpeg fills two pipes in any order, so both must be emptied
    at once. Does nothing without `watch`."""

    def __init__(self, filters: str, watch: Watcher | None) -> None:
        self.output: list[str] = []
        self.pass_fds: tuple[int, ...] = ()
        self._watch = watch
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if watch is not None:
            self._source, sink = os.pipe()
            self.pass_fds = (sink,)
            self.output = ["-vf", filters, *_pictures("pgm"), f"pipe:{sink}", "-map", "0:v:0"]

    def start(self) -> None:
        """Begin to read, once ffmpeg has the other end."""
        if self._watch is not None:
            self._close_sink()
            self._thread = threading.Thread(target=self._read, args=[self._watch], name="luma", daemon=True)
            self._thread.start()

    def _read(self, watch: Watcher) -> None:
        with open(self._source, "rb") as stream:
            try:
                while (picture := _read_picture(stream)) is not None:
                    watch(picture)
            except BaseException as error:  # raised again by `finish`
                self._error = error
                while stream.read(1 << 20):
                    pass

    def finish(self) -> None:
        """Wait until every frame was watched."""
        if self._thread:
            self._thread.join()
            if self._error:
                raise self._error

    def _close_sink(self) -> None:
        for sink in self.pass_fds:
            os.close(sink)
        self.pass_fds = ()

    def __enter__(self) -> _Luma:
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open; ffmpeg has ended."""
        self._close_sink()
        if self._thread:
            self._thread.join()
        elif self._watch is not None:
            os.close(self._source)


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

    def frames(self, watch_luma: Watcher | None = None) -> Iterator[np.ndarray]:
        """Yield frames as `VideoFile.frames` does. InputError names a picture that cannot be read."""
        size = _reduced(self.width, self.height, ANALYSIS_SIDE)
        for file in self._files:
            picture = read_picture(file)
            if watch_luma:
                watch_luma(_luma(picture))
            yield np.asarray(picture.resize(size, Image.Resampling.BOX))

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
