"""Opens pictures within bounds, so that unreadable ones are found before a film is begun, with one set of messages."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from helios_cli.errors import InputError
from helios_cli.visible import printable

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
"""What is read, whatever a file is called. Pillow knows more, among them EPS, for which it starts Ghostscript."""

MAX_SIDE = 32768
MAX_PIXELS = 120_000_000
MAX_SLOW_PIXELS = 4_000_000
"""Where Pillow decodes in Python, at some microseconds a pixel."""

MAX_BYTES = 2**29
PIXEL_BYTES = {"WEBP": 18, "AVIF": 14}
OTHER_PIXEL_BYTES = 10
"""For each pixel while a picture is read: itself, the same in RGB or turned, and what a decoder holds. Measured."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_REMARKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
MAX_PNG_CHUNKS = 1_000_000


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """The picture at `path`, decoded and turned as its EXIF says, in a mode that has a meaning as RGB.

    InputError if it cannot be read, or if what the block does with it fails.
    """
    with _header(path) as file:
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
        yield file


@contextmanager
def _header(path: str | os.PathLike) -> Iterator[Image.Image]:
    """The picture at `path`, of which no pixel is read yet. InputError as `opened` has it."""
    shown = printable(path, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of sizes from 89 megapixels; 179 are an error
        try:
            with _file(path) as file:
                yield file
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            hint = f"scale it to at most {MAX_PIXELS // 10**6} megapixels"
            raise InputError(f"the picture {shown} is too large", hint=hint) from error
        except UnidentifiedImageError as error:
            raise InputError(f"{shown} is not a picture that can be read", hint="save it as .png or .jpg") from error
        except Exception as error:  # a decoder raises whatever its parser trips over in a damaged file
            reason = getattr(error, "strerror", None) or error
            message = f"cannot read the picture {shown}: {reason}"
            raise InputError(message, hint="check the path and the file") from error


@contextmanager
def _file(path: str | os.PathLike) -> Iterator[Image.Image]:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with open(path, "rb", opener=_regular) as data, Image.open(_without_remarks(data), formats=formats) as file:
        if file.mode == "F":
            raise ValueError("it has floating-point values of unknown range")
        is_slow = any(tile[0] in Image.DECODERS for tile in file.tile)
        _require_size(path, file.size, MAX_SLOW_PIXELS if is_slow else MAX_PIXELS)
        yield file


def _require_size(path: str | os.PathLike, size: tuple[int, int], most: int) -> None:
    if max(size) > MAX_SIDE or size[0] * size[1] > most:
        raise InputError(
            f"the picture {printable(path, 200)} is too large: {size[0]}x{size[1]}",
            hint=f"scale it to at most {most // 10**6} megapixels, {MAX_SIDE} pixels a side",
        )


def _regular(path: str, flags: int) -> int:
    """Opens a regular file of limited size, and so no pipe or device that might never end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_BYTES:
        return descriptor
    os.close(descriptor)
    raise ValueError("it is no file" if not stat.S_ISREG(found.st_mode) else f"it is larger than {MAX_BYTES >> 20} MiB")


def _without_remarks(file: BinaryIO) -> BinaryIO:
    """A PNG without texts and colour profiles: programs write whole workflows there, which Pillow takes for an attack,
    and nobody here reads. What may say how it is turned is left."""
    if file.read(8) != PNG_SIGNATURE:
        file.seek(0)
        return file
    spans, place, whole = [(0, 8)], 8, True
    for _ in range(MAX_PNG_CHUNKS):
        file.seek(place)
        head = file.read(8 + max(map(len, ORIENTATION)))
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head[:8])
        if kind in PNG_REMARKS and not head[8:].startswith(ORIENTATION):
            whole = False
        else:
            spans.append((place, 12 + length))
        place += 12 + length
    else:
        raise ValueError("it is in too many parts")
    file.seek(0)
    if whole:
        return file
    return io.BytesIO(b"".join(_read(file, *span) for span in spans))


def _read(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


def reading_bytes(path: str | os.PathLike) -> int:
    """Memory that reading the picture at `path`, which can be read, takes at most."""
    found = os.stat(path)
    return _reading_bytes(path, found.st_size, found.st_mtime_ns)


@cache
def _reading_bytes(path: str | os.PathLike, size: int, mtime_ns: int) -> int:
    """Kept, since a plan asks for each placement of the model, of which there are dozens."""
    with _header(path) as file:
        return PIXEL_BYTES.get(file.format, OTHER_PIXEL_BYTES) * file.width * file.height + size


def picture_fault(path: Path) -> tuple[str, str | None] | None:
    """Message and suggestion if the file at `path` is no picture that can be read to its end."""
    stat = path.stat()
    return _fault(path, stat.st_size, stat.st_mtime_ns)


@cache
def _fault(path: Path, size: int, mtime_ns: int) -> tuple[str, str | None] | None:
    """Kept, since a film is checked when it is read and when it is planned, and 12 megapixels take 0.3 s to decode."""
    try:
        with opened(path):
            return None
    except InputError as error:
        return error.message, error.hint
