"""Pictures and clips that a film starts from, brought to the film's size and rate.

Nothing is stretched: what has another aspect is scaled to cover the film's size and cropped evenly. A picture or
lossless clip that has the size already comes through unchanged.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from helios_cli.engine import ffmpeg
from helios_cli.errors import InputError
from helios_cli.recipe.pictures import opened
from helios_cli.units import FRAMES_PER_CHUNK, counted

WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes for 16-bit grey; its own conversion to RGB clips at 255."""


def read_image(path: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """The picture at `path` as float32 [3, H, W] in [-1, 1], scaled (Lanczos) and cropped to `size` (width, height).

    Rotation from EXIF is applied; transparent parts are laid over black; grey, palette, CMYK and 16-bit pictures
    become 8-bit RGB; colour profiles are not applied. InputError if it cannot be read.
    """
    with opened(path) as file:
        picture = _rgb(file)
    if picture.size != size:
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    return _normalized(np.asarray(picture)).transpose(2, 0, 1)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in WIDE_MODES:
        wide = np.asarray(picture).astype(np.float64)
        return Image.fromarray(np.rint(wide.clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB")
    return picture.convert("RGB")


def _normalized(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]: divided first, as the reference does, so that every bit agrees."""
    values = pixels.astype(np.float32)
    values /= 255
    values *= 2
    values -= 1
    return values


class VideoClip:
    """A clip to continue, decoded through a pipe when asked: never more than one chunk of it is in memory.

    Attributes:
        info: what ffmpeg says about the file.
        num_frames: frames at the film's rate.
        num_chunks: whole chunks in it; they end at the clip's last frame, so up to 32 frames at its start are in none.
    """

    def __init__(self, path: str | os.PathLike, size: tuple[int, int], fps: float) -> None:
        """Look at the clip and count its frames, which decodes it once. InputError if it is no clip or too short."""
        self._path = Path(path)
        self._size = size
        self.info = ffmpeg.probe(path)
        self._rate_filter = _rate_filter(fps)
        self.num_frames = _count(self._path, fps)
        self.num_chunks = self.num_frames // FRAMES_PER_CHUNK

    def first_frame(self) -> np.ndarray:
        """The clip's first frame, float32 [3, 1, H, W] in [-1, 1]."""
        with self._decoded("-frames:v", "1") as decoder:
            return self._read(decoder, 1)

    def chunks(self) -> Iterator[np.ndarray]:
        """The last `num_chunks * 33` frames in order, float32 [3, 33, H, W] in [-1, 1] each."""
        with self._decoded() as decoder:
            for _ in range(self.num_frames % FRAMES_PER_CHUNK):
                self._read(decoder, 1)
            for _ in range(self.num_chunks):
                yield self._read(decoder, FRAMES_PER_CHUNK)

    @contextmanager
    def _decoded(self, *options: str) -> Iterator[ffmpeg.Process]:
        """An ffmpeg that writes rgb24 frames of the film's size to its stdout; ended when the block is left."""
        filters = f"{self._rate_filter},{_cover_filter(self._size)}"
        arguments = [*_input(self._path), "-vf", filters, *options, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
        decoder = ffmpeg.Process(arguments, stdout=subprocess.PIPE)
        try:
            yield decoder
        finally:
            decoder.kill()

    def _read(self, decoder: ffmpeg.Process, num_frames: int) -> np.ndarray:
        width, height = self._size
        pixels = np.empty((num_frames, height, width, 3), np.uint8)
        if decoder.stdout.readinto(memoryview(pixels).cast("B")) < pixels.nbytes:
            decoder.wait()
            raise _unreadable(self._path, decoder)
        return _normalized(pixels).transpose(3, 0, 1, 2)


def check_clip(path: str | os.PathLike, fps: float) -> None:
    """Find before a render whether a film of `fps` can continue a clip, from no more than a chunk of it: the InputError
    of `VideoClip`."""
    ffmpeg.probe(path)
    _count(Path(path), fps, "-frames:v", f"{FRAMES_PER_CHUNK}")


def _count(path: Path, fps: float, *options: str) -> int:
    """The clip's frames at `fps`, all or as many as `options` take; InputError if that is less than a chunk."""
    counter = ffmpeg.Process([*_input(path), "-vf", _rate_filter(fps), *options, "-f", "null", "-"])
    try:
        if counter.wait():
            raise _unreadable(path, counter)
    finally:
        counter.kill()
    if counter.num_frames < FRAMES_PER_CHUNK:
        raise InputError(
            f"the video {path} has {counted(counter.num_frames, 'frame')} at {fps:g} a second; "
            f"{FRAMES_PER_CHUNK} are needed",
            hint=f"give at least {FRAMES_PER_CHUNK / fps:.2f} s, or start from a picture with --image",
        )
    return counter.num_frames


def _input(path: Path) -> list[str]:
    return ["-i", ffmpeg.file_argument(path), "-map", "0:v:0", "-fps_mode", "passthrough"]


def _unreadable(path: Path, process: ffmpeg.Process) -> InputError:
    message = f"the video {path} cannot be decoded: {process.messages()}"
    return InputError(message, hint="convert it, for example to .mp4, or give another one")


def _rate_filter(fps: float) -> str:
    """Makes the rate constant; the identity on a clip that has it, whatever its timestamps were rounded to.

    Counted from the first frame: a start of half a frame, as sound coders leave, would round either way.
    """
    return f"setpts=PTS-STARTPTS,fps={ffmpeg.frame_rate(fps)}"


def _cover_filter(size: tuple[int, int]) -> str:
    """Scale to cover `size` in square pixels, then crop evenly. `dar` is the clip's aspect as shown."""
    width, height = size
    scale = f"scale=w='max({width},round({height}*dar))':h='max({height},round({width}/dar))'"
    return f"{scale}:flags=lanczos+accurate_rnd+full_chroma_int,format=rgb24,crop={width}:{height}"
