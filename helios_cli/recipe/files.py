"""Text files as they come, and the pictures that a film names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from helios_cli.recipe.film import Film
from helios_cli.recipe.problems import Problem, Problems, nearest
from helios_cli.recipe.schema import control_character
from helios_cli.visible import printable

MAX_BYTES = 1 << 20
"""Largest source file: 1 MiB is ten thousand shots of a sentence each."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
CLIPS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".gif")

MAX_NEIGHBOURS = 1000
"""Names of a folder that are looked through for one that was meant."""


def read_text(path: Path, problems: Problems) -> str:
    """The text of a source file. Problems are raised: unreadable, too large, not UTF-8, control characters."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.add(f"cannot be read: {error.strerror or error}")
        problems.stop()
    return decode(data, problems)


def decode(data: bytes, problems: Problems) -> str:
    """`data` as text with `\\n` line ends, with or without a byte order mark; problems are raised."""
    if len(data) > MAX_BYTES:
        problems.add(f"is larger than {MAX_BYTES >> 20} MiB, the most a source may be", suggestion="split the film")
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.add("is UTF-16", suggestion="save it as UTF-8")
    problems.stop()
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, offset) + 1
        problems.add(
            f"is not UTF-8: byte 0x{data[offset]:02x} at offset {offset}", line=line, suggestion="save it as UTF-8"
        )
        problems.stop()
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if control_character(text):
        for number, line in enumerate(text.split("\n"), 1):
            if bad := control_character(line):
                problems.add(f"holds the control character U+{ord(bad[0]):04X}", line=number, suggestion="remove it")
    problems.stop()
    return text


Fault = tuple[str, str | None]
"""What is wrong with a file: message and suggestion."""


def picture_problems(
    film: Film, start: Mapping[str, Path | None], fault: Callable[[Path, str, str], Fault | None]
) -> Iterator[Problem]:
    """What `fault`, such as `file_fault`, finds of the pictures and clips of a film: of a path, its key, and in words
    what it is relative to.

    `start` holds those of the flags, by key: if there are any, they take the place of the first shot's.
    """
    flags = {key: path for key, path in start.items() if path is not None}
    for key, path in flags.items():
        if found := fault(path, key, "the current folder"):
            yield Problem(f"--{key}", found[0], suggestion=found[1])
    for index, shot in enumerate(film.recipe.shots):
        if index == 0 and flags:
            continue
        for key in ("image", "video"):
            written = getattr(shot, key)
            found = fault(film.picture(written), key, "the recipe") if written is not None else None
            if found is not None:
                message, suggestion = found
                yield Problem(film.source, message, film.line("shot", index, key), index + 1, key, suggestion)


def file_fault(path: Path, key: str, base: str) -> Fault | None:
    """Why `path`, relative to `base`, cannot be the picture (`key` is "image") or the clip ("video") of a shot; a clip
    is not opened."""
    suffixes, other, meant = (PICTURES, CLIPS, "video") if key == "image" else (CLIPS, PICTURES, "image")
    shown = printable(path, 200)
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        if suffix in other:
            return f"{shown} is no {'picture' if key == 'image' else 'clip'}", f"write `{meant}` in place of `{key}`"
        return f"{shown}: unknown kind of file", "known are " + ", ".join(suffixes)
    if not path.exists():
        near = near_file(path, suffixes)
        return f"no such file: {shown}", f"did you mean {near}?" if near else f"paths are relative to {base}"
    if not path.is_file():
        return f"{shown} is not a file", None
    if not os.access(path, os.R_OK):
        return f"{shown} may not be read", None
    if key == "video":
        return None
    from helios_cli.recipe.pictures import picture_fault

    return picture_fault(path)


def near_file(path: Path, suffixes: Iterable[str]) -> str | None:
    """The name, in the folder of `path`, of the file that it was most likely meant to be, with any known suffix."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for _, entry in zip(range(MAX_NEIGHBOURS), entries, strict=False)]
    except (OSError, ValueError):  # no such folder, or a NUL in its name
        return None
    wanted = {Path(name).stem: name for name in names if Path(name).suffix.lower() in suffixes}
    near = path.stem if path.stem in wanted else nearest(path.stem, wanted)
    return None if near is None else printable(wanted[near])
