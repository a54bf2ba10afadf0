"""Opens pictures within limits, so that unreadable ones are found before a film is started."""

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
"""Formats that are read, whatever the file's suffix. Pillow has more, such as EPS, for which it starts Ghostscript."""

MAX_SIDE = 32768
MAX_PIXELS = 120_000_000
MAX_SLOW_PIXELS = 4_000_000
"""Limit of formats that Pillow decodes in Python, at some microseconds per pixel."""

MAX_BYTES = 2**29
PIXEL_BYTES = {"WEBP": 18, "AVIF": 14}
OTHER_PIXEL_BYTES = 10
"""Bytes per pixel while a picture is read: itself, its RGB or rotated copy, and the decoder's memory. Measured."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_REMARKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
MAX_PNG_CHUNKS = 1_000_000


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Yield the picture at `path`, decoded and rotated by its EXIF data, in a mode that has a meaning as RGB.

    InputError if it cannot be read, or if what the block does with it fails.
    """
    with _header(path) as file:
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
        yield file


@contextmanager
def _header(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Yield the picture at `path`, of which no pixel is read yet. InputError as in `opened`."""
    shown = printable(path, 200)
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of sizes from 89 megapixels; 179 are an error
        try:
            with (
                open(path, "rb", opener=_open_regular) as data,
                Image.open(_without_remarks(data), formats=formats) as file,
            ):
                if file.mode == "F":
                    raise ValueError("it has floating-point values of unknown range")
                is_slow = any(tile[0] in Image.DECODERS for tile in file.tile)
                most = MAX_SLOW_PIXELS if is_slow else MAX_PIXELS
                if max(file.size) > MAX_SIDE or file.width * file.height > most:
                    hint = f"scale it to at most {most // 10**6} megapixels, {MAX_SIDE} pixels a side"
                    raise InputError(f"the picture {shown} is too large: {file.width}x{file.height}", hint=hint)
                yield file
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            hint = f"scale it to at most {MAX_PIXELS // 10**6} megapixels"
            raise InputError(f"the picture {shown} is too large", hint=hint) from error
        except UnidentifiedImageError as error:
            raise InputError(f"{shown} is not a picture that can be read", hint="save it as .png or .jpg") from error
        except Exception as error:  # a decoder raises whatever its parser trips over in a damaged file
            message = f"cannot read the picture {shown}: {getattr(error, 'strerror', None) or error}"
            raise InputError(message, hint="check the path and the file") from error


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file of limited size: no pipe or device that might never end."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    is_file = stat.S_ISREG(status.st_mode)
    if is_file and status.st_size <= MAX_BYTES:
        return descriptor
    os.close(descriptor)
    raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB" if is_file else "it is not a file")


def _without_remarks(file: BinaryIO) -> BinaryIO:
    """Return a PNG without texts and colour profiles, except for those that may hold its orientation.

    Programs write whole workflows there, which Pillow takes for an attack, and helios does not use them.
    """
    if file.read(8) != PNG_SIGNATURE:
        file.seek(0)
        return file
    spans, place = [(0, 8)], 8
    for _ in range(MAX_PNG_CHUNKS):
        file.seek(place)
        head = file.read(8 + max(map(len, ORIENTATION)))
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head[:8])
        if kind not in PNG_REMARKS or head[8:].startswith(ORIENTATION):
            spans.append((place, 12 + length))
        place += 12 + length
    else:
        raise ValueError("it has too many parts")
    file.seek(0)
    if sum(length for _, length in spans) == place:  # nothing to leave out
        return file
    return io.BytesIO(b"".join(_read(file, *span) for span in spans))


def _read(file: BinaryIO, place: int, length: int) -> bytes:
    file.seek(place)
    return file.read(length)


def reading_bytes(path: Path) -> int:
    """Return the memory that reading the picture at `path`, which can be read, takes at most."""
    status = path.stat()
    return _reading_bytes(path, status.st_size, status.st_mtime_ns)


@cache
def _reading_bytes(path: Path, size: int, mtime_ns: int) -> int:
    """Cached, since a plan calls it for dozens of placements of the model."""
    with _header(path) as file:
        return PIXEL_BYTES.get(file.format or "", OTHER_PIXEL_BYTES) * file.width * file.height + size


def picture_fault(path: Path) -> tuple[str, str | None] | None:
    """Return message and suggestion if the file at `path` is not a picture that can be read to its end."""
    status = path.stat()
    return _fault(path, status.st_size, status.st_mtime_ns)


@cache
def _fault(path: Path, size: int, mtime_ns: int) -> tuple[str, str | None] | None:
    """Cached, since a film is checked when read and when planned, and 12 megapixels take 0.3 s to decode."""
    try:
        with opened(path):
            return None
    except InputError as error:
        return error.message, error.hint
