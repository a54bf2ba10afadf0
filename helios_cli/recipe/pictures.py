"""Pictures as films take them, opened: what cannot be read is found before a film is begun, and said in one way."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from helios_cli.errors import InputError
from helios_cli.visible import printable


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
    """The picture at `path`, decoded and turned as its EXIF says, in a mode that has a meaning as RGB.

    InputError if it cannot be read, or if what the block does with it fails.
    """
    shown = printable(path, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of sizes from 89 megapixels; 179 are an error
        try:
            with Image.open(path) as file:
                if file.mode == "F":
                    raise ValueError("it has floating-point values of unknown range")
                yield ImageOps.exif_transpose(file)
        except Image.DecompressionBombError as error:
            limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
            raise InputError(f"the picture {shown} is too large", hint=f"scale it below {limit} megapixels") from error
        except UnidentifiedImageError as error:
            raise InputError(f"{shown} is not a picture that can be read", hint="save it as .png or .jpg") from error
        except Exception as error:  # a decoder raises whatever its parser trips over in a damaged file
            reason = getattr(error, "strerror", None) or error
            message = f"cannot read the picture {shown}: {reason}"
            raise InputError(message, hint="check the path and the file") from error


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
