"""Reads pictures and clips that a film starts from, and brings them to the film's size and rate.

Nothing is stretched: a picture of another aspect is scaled to cover the film's size and cropped evenly. A picture or
lossless clip of the film's size is not changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

from helios_cli.errors import InputError
from helios_cli.film import ffmpeg, reading
from helios_cli.recipe.pictures import opened
from helios_cli.units import FRAMES_PER_CHUNK, counted

WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes for 16-bit grey; its own conversion to RGB clips at 255."""

ROWS = 256
"""Rows of a picture that are converted to RGB at a time, so that intermediate copies stay small."""

MAX_ASPECT = 16
"""Limit on the aspect of a clip as shown: the whole clip is scaled before it is cropped."""


def read_image(path: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """Return the picture at `path` as float32 [3, H, W] in [-1, 1], scaled (Lanczos) and cropped to `size`.

    Rotation from EXIF is applied; transparent parts are laid over black; grey, palette, CMYK and 16-bit pictures
    become 8-bit RGB; colour profiles are not applied. InputError if it cannot be read.
    """
    picture = read_picture(path)
    if picture.size != size:
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    return _normalized(np.asarray(picture)).transpose(2, 0, 1)


def read_picture(path: str | os.PathLike) -> Image.Image:
    """Return the picture at `path` in RGB and its own size; see `read_image`."""
    with opened(path) as picture:
        if picture.mode == "RGB" and not picture.has_transparency_data:
            return picture
        whole = Image.new("RGB", picture.size)
        for top in range(0, picture.height, ROWS):
            bottom = min(top + ROWS, picture.height)
            whole.paste(_rgb(picture.crop((0, top, picture.width, bottom))), (0, top))
        return whole


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in WIDE_MODES:
        wide = np.asarray(picture).astype(np.float64)
        return Image.fromarray(np.rint(wide.clip(0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("RGB")
    return picture.convert("RGB")


def _normalized(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 to float32 in [-1, 1]; dividing first, as the reference does, makes every bit agree."""
    values = pixels.astype(np.float32)
    values /= 255
    values *= 2
    values -= 1
    return values


class VideoClip:
    """A clip to continue, decoded through a pipe on demand: never more than one chunk of it is in memory.

    Attributes:
        info: ffmpeg's description of the file.
        num_frames: frames at the film's rate.
        num_chunks: whole chunks in it; they end at the clip's last frame, so up to 32 frames at its start are in none.
    """

    def __init__(self, path: str | os.PathLike, size: tuple[int, int], fps: float) -> None:
        """Probe the clip and count its frames, which decodes it once. InputError if it is not a clip, or too short, too
        long or too narrow."""
        self._path, self._size, self._rate_filter = path, size, _rate_filter(fps)
        self.info = _checked(path)
        self.num_frames = _count(path, fps)
        self.num_chunks = self.num_frames // FRAMES_PER_CHUNK

    def first_frame(self) -> np.ndarray:
        """Return the clip's first frame, float32 [3, 1, H, W] in [-1, 1]."""
        with self._decoded(self._rate_filter, "-frames:v", "1") as decoder:
            return self._read(decoder, 1)

    def chunks(self, first: int = 0) -> Iterator[np.ndarray]:
        """Yield the last `num_chunks * 33` frames by chunk, float32 [3, 33, H, W] in [-1, 1], from chunk `first` on."""
        start = self.num_frames % FRAMES_PER_CHUNK + first * FRAMES_PER_CHUNK
        with self._decoded(f"{self._rate_filter},trim=start_frame={start}") as decoder:
            for _ in range(first, self.num_chunks):
                yield self._read(decoder, FRAMES_PER_CHUNK)

    def _decoded(self, chosen: str, *options: str) -> ffmpeg.Process:
        """Run an ffmpeg that writes the frames which the filters `chosen` leave as rgb24 of the film's size."""
        filters = ["-vf", f"{chosen},{_cover_filter(self._size)}", *ffmpeg.every_frame(), *options]
        return reading.decoder(self._path, *filters, "-f", "rawvideo", "-pix_fmt", "rgb24")

    def _read(self, decoder: ffmpeg.Process, num_frames: int) -> np.ndarray:
        width, height = self._size
        num_bytes = num_frames * height * width * 3
        data = decoder.stdout.read(num_bytes)
        if len(data) < num_bytes:
            decoder.wait()
            raise reading.undecodable(self._path, decoder)
        pixels = np.frombuffer(data, np.uint8).reshape(num_frames, height, width, 3)
        return _normalized(pixels).transpose(3, 0, 1, 2)


def check_clip(path: str | os.PathLike, fps: float) -> None:
    """Check before a render that a film of `fps` can continue a clip, decoding no more than a chunk of it. Raises the
    InputErrors of `VideoClip`."""
    _checked(path)
    _count(path, fps, "-frames:v", f"{FRAMES_PER_CHUNK}")


def _checked(path: str | os.PathLike) -> reading.VideoInfo:
    """Probe a clip that a film can continue, without counting its frames."""
    info = reading.probe(path)
    if not 1 / MAX_ASPECT <= info.aspect <= MAX_ASPECT:
        raise InputError(
            f"the video {path} is {info.width}x{info.height}, shown {info.aspect:.3g} times as wide as high; "
            f"1/{MAX_ASPECT} to {MAX_ASPECT} is allowed",
            hint="crop it",
        )
    reading.extent(path)
    return info


def _count(path: str | os.PathLike, fps: float, *options: str) -> int:
    """Count the clip's frames at `fps`, all or as many as `options` take; InputError for less than a chunk."""
    decoded = ["-vf", _rate_filter(fps), *ffmpeg.every_frame(), *options, "-c:v", "wrapped_avframe"]
    num_frames = reading.num_frames(path, *decoded)
    if num_frames < FRAMES_PER_CHUNK:
        raise InputError(
            f"the video {path} has {counted(num_frames, 'frame')} at {fps:g} fps; {FRAMES_PER_CHUNK} are needed",
            hint=f"give at least {FRAMES_PER_CHUNK / fps:.2f} s, or start from a picture with --image",
        )
    return num_frames


def _rate_filter(fps: float) -> str:
    """Return filters that make the rate constant, and change nothing in a clip of that rate with rounded timestamps.

    They count from the first frame: a start of half a frame, as sound coders leave, would round either way.
    """
    return f"setpts=PTS-STARTPTS,fps={ffmpeg.frame_rate(fps)}"


def _cover_filter(size: tuple[int, int]) -> str:
    """Return filters that scale to cover `size` in square pixels, then crop evenly; `dar` is the aspect as shown."""
    width, height = size
    scale = f"scale=w='max({width},round({height}*dar))':h='max({height},round({width}/dar))'"
    return f"{scale}:flags=lanczos+accurate_rnd+full_chroma_int,format=rgb24,crop={width}:{height}"
