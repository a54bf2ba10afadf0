"""Text files as they come, and the pictures that a film names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from helios_cli.recipe.film import Film
from helios_cli.recipe.problems import Problem, Problems, also_in, nearest
from helios_cli.recipe.schema import CONTROL
from helios_cli.visible import printable, without_hidden

MAX_BYTES = 1 << 20
"""Largest source file: 1 MiB is ten thousand shots of a sentence each."""

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif")
CLIPS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv", ".mxf", ".dv", ".y4m", ".gif"),
    *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
)
"""What files are called that are looked for. Whether one can be read, whatever it is called, what is in it says."""

MAX_NEIGHBOURS = 1000
"""Names of a folder that are looked through for one that was meant."""


def read_text(path: Path, problems: Problems) -> str:
    """The text of a source file. Problems are raised: missing, unreadable, too large, not UTF-8, control characters."""
    if not os.path.isfile(path):  # a pipe would be waited for
        message, suggestion = absence(path, (path.suffix.lower(),), None) or ("is not a file", None)
        problems.add(message, suggestion=suggestion)
        problems.stop()
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.add(f"cannot be read: {error.strerror or error}")
        problems.stop()
    return decode(data, problems)


def decode(data: bytes, problems: Problems) -> str:
    """`data` as text with `\\n` line ends, without byte order marks, characters of no width, or the code fence that a
    chat puts around it; problems are raised."""
    if len(data) > MAX_BYTES:
        problems.add(f"is larger than {MAX_BYTES >> 20} MiB, the most a source may be", suggestion="split the film")
    problems.stop()
    encoding = _encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding.upper()
        problems.add(f"is not {name}: {where}", line=line, suggestion="save it as UTF-8")
        problems.stop()
    text = _WIDTHLESS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    for character in dict.fromkeys(CONTROL.findall(text)):
        numbers = [number for number, line in enumerate(text.split("\n"), 1) if character in line]
        message = f"holds the control character U+{ord(character):04X}" + also_in(numbers)
        problems.add(message, line=numbers[0], suggestion="remove it")
    problems.stop()
    return _without_fence(text)


def _without_fence(text: str) -> str:
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip()]
    if len(filled) > 2 and all(is_fence(lines[number]) for number in (filled[0], filled[-1])):
        lines[filled[0]] = lines[filled[-1]] = ""  # the others keep their numbers
    return "\n".join(lines)


def is_fence(line: str) -> bool:
    """Whether a line begins or ends code in Markdown."""
    return bool(re.fullmatch(r"(?:`{3,}|~{3,})\s*\w*", line.strip()))


def _encoding(data: bytes) -> str:
    """UTF-8, or UTF-16 as Windows saves it: every other byte of words in Latin letters is zero."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if 4 * data.count(0) < len(data) or not data:
        return "utf-8"
    return "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"


_WIDTHLESS = re.compile("[\ufeff\u200b\u2060]")
_ODD = (
    (re.compile("[“”„‟«»‘‛‚″]"), "a quote of another kind: write straight ones, \" or '"),
    (re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]"), "a space of another kind: write a plain one"),
    (re.compile("[`~]{3}"), "a code fence: remove its line"),
)


def add_odd_character(text: str, lines: Sequence[int], problems: Problems) -> bool:
    """Add the typographic character, such as a chat or a word processor writes, that may be why `lines` of a recipe
    cannot be parsed. Returns whether there is one."""
    written = text.split("\n")
    for number in (number for number in lines if number <= len(written)):
        for form, meaning in _ODD:
            if found := form.search(written[number - 1]):
                shown = f"{found[0]} (U+{ord(found[0][0]):04X})" if found[0].isprintable() else f"U+{ord(found[0]):04X}"
                message, _, cure = f"holds {shown}, {meaning}".partition(": ")
                problems.add(message, line=number, suggestion=cure)
                return True
    return False


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")

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
    if suffix not in suffixes and suffix in other:
        return f"{shown} is no {'picture' if key == 'image' else 'clip'}", f"write `{meant}` in place of `{key}`"
    if absent := absence(path, suffixes, f"paths are relative to {base}"):
        return f"{shown}: {absent[0]}", absent[1]
    if not path.is_file():
        return f"{shown} is not a file", None
    if not os.access(path, os.R_OK):
        return f"{shown} may not be read", None
    if key == "video":
        return None
    from helios_cli.recipe.pictures import picture_fault

    return picture_fault(path)


def absence(path: Path, suffixes: Iterable[str], otherwise: str | None) -> Fault | None:
    """Why there is nothing at `path`, with the name that was most likely meant or else the advice `otherwise`; None if
    something is there."""
    try:
        os.stat(path)
        return None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last is a NUL
        pass
    except OSError as error:
        return error.strerror, None
    if is_url(path):
        return "only local files are read", "download it first"
    if os.path.islink(path):
        return f"a link to {printable(os.readlink(path), 200)}, which is not there", None
    near = near_file(path, suffixes)
    return "no such file", f"did you mean {near}?" if near else otherwise


def is_url(path: str | Path) -> bool:
    """Whether `path` is a URL; a `Path` keeps only one of its two slashes."""
    return bool(_URL.match(str(path)))


def near_file(path: Path, suffixes: Iterable[str]) -> str | None:
    """The name, in the folder of `path`, of the file that it was most likely meant to be, with any known suffix."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for _, entry in zip(range(MAX_NEIGHBOURS), entries, strict=False)]
    except (OSError, ValueError):  # no such folder, or a NUL in its name
        return None
    meant = without_hidden(path.name)
    if meant in names and meant != path.name:
        return printable(meant)
    stem = Path(meant).stem
    wanted = {Path(name).stem: name for name in names if Path(name).suffix.lower() in suffixes and name != path.name}
    near = stem if stem in wanted else nearest(stem, wanted)
    return None if near is None else printable(wanted[near])
