"""Reads text files in any encoding, and finds the pictures and clips that a film names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import InputError
from helios_cli.recipe.film import Film
from helios_cli.recipe.lora import PICKLES, Lora
from helios_cli.recipe.problems import Problem, Problems, also_in, nearest
from helios_cli.recipe.schema import CONTROL
from helios_cli.visible import printable, without_hidden

if TYPE_CHECKING:
    from helios_cli.recipe.options import RenderOptions
    from helios_cli.recipe.settings import Settings

MAX_BYTES = 1 << 20
"""Largest source file: 1 MiB is ten thousand shots of a sentence each."""

RECIPES = (".toml", ".yaml", ".yml", ".json")
SUFFIXES = (*RECIPES, ".txt", ".csv", ".jsonl", ".srt")
SOURCES = "sources end in " + ", ".join(SUFFIXES)

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif")
CLIPS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ogv", ".mxf", ".dv", ".y4m", ".gif"),
    *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
)
SOUNDS = (
    *(".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".wv", ".wma", ".mka"),
    *CLIPS,
)
"""Suffixes of files that are suggested. Whether a file can be read depends on its content, not on its name."""

MAX_NEIGHBOURS = 1000
"""Names of a folder that are searched for the one that was meant."""


def read_text(path: Path, problems: Problems) -> str:
    """Return the text of a source file. RecipeError if it is missing, unreadable, too large or not text."""
    if not os.path.isfile(path):  # a pipe would be waited for
        message, suggestion = absence(path, (path.suffix.lower(),), None) or ("is not a file", None)
        problems.refuse(message, suggestion=suggestion)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.refuse(f"cannot be read: {error.strerror or error}")
    return decode(data, problems)


def decode(data: bytes, problems: Problems) -> str:
    """Return `data` as text with `\\n` line ends, without byte order marks, characters of no width, or the code fence
    that a chat puts around it. RecipeError if it is too large or not text."""
    if len(data) > MAX_BYTES:
        problems.refuse(f"is larger than {MAX_BYTES >> 20} MiB, the limit for a source", suggestion="split the film")
    encoding = _encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        message = f"is not {encoding.upper()}: byte 0x{data[error.start]:02x} at offset {error.start}"
        line = data.count(b"\n", 0, error.start) + 1
        problems.refuse(message, line=line, suggestion="save it as UTF-8")
    text = WIDTHLESS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = text.split("\n")
    for character in dict.fromkeys(CONTROL.findall(text)):
        numbers = [number for number, line in enumerate(lines, 1) if character in line]
        message = f"contains the control character U+{ord(character):04X}" + also_in(numbers)
        problems.add(message, line=numbers[0], suggestion="remove it")
    problems.stop()
    filled = [index for index, line in enumerate(lines) if line.strip()]
    if len(filled) > 2 and is_fence(lines[filled[0]]) and is_fence(lines[filled[-1]]):
        lines[filled[0]] = lines[filled[-1]] = ""  # the other lines keep their numbers
    return "\n".join(lines)


def is_fence(line: str) -> bool:
    """Tell whether a line begins or ends code in Markdown."""
    return bool(re.fullmatch(r"(?:`{3,}|~{3,})\s*\w*", line.strip()))


def _encoding(data: bytes) -> str:
    """UTF-8, or UTF-16 as Windows saves it: every other byte of words in Latin letters is zero."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if 4 * data.count(0) < len(data) or not data:
        return "utf-8"
    return "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"


WIDTHLESS = re.compile("[\ufeff\u200b\u2060]")
"""The characters that are not read from a file, where no one sees them. Escapes stand for themselves."""

_ODD = (
    (re.compile("[“”„‟«»‘‛‚″]"), "a quote of another kind", "write straight ones, \" or '"),
    (re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]"), "a space of another kind", "write a plain one"),
    (re.compile("[`~]{3}"), "a code fence", "remove its line"),
)


def add_odd_character(text: str, lines: Iterable[int], problems: Problems) -> bool:
    """Add the typographic character, such as a chat or a word processor writes, that may be why `lines` of a recipe
    cannot be parsed. Return whether there is one."""
    written = text.split("\n")
    for number in (number for number in lines if number <= len(written)):
        for form, meaning, cure in _ODD:
            if match := form.search(written[number - 1]):
                code = f"U+{ord(match[0][0]):04X}"
                character = f"{match[0]} ({code})" if match[0].isprintable() else code
                problems.add(f"contains {character}, {meaning}", line=number, suggestion=cure)
                return True
    return False


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")

Fault = tuple[str, str | None]
"""Message and suggestion for a file."""


def picture_problems(
    film: Film, options: RenderOptions | Settings, fault: Callable[[Path, str, str], Fault | None]
) -> Iterator[Problem]:
    """Yield what `fault`, such as `file_fault`, finds in the pictures and clips of a film. It is called with a path,
    its key, and in words what it is relative to.

    A picture or clip in `options` replaces those of the first shot.
    """
    flags = {key: path for key in ("image", "video") if (path := getattr(options, key)) is not None}
    for key, path in flags.items():
        if error := fault(path, key, "the current folder"):
            yield Problem(f"--{key}", error[0], suggestion=error[1])
    for index, shot in enumerate(film.recipe.shots):
        for key in ("image", "video") if index or not flags else ():
            written = getattr(shot, key)
            if written is not None and (error := fault(film.picture(written), key, "the recipe")):
                yield Problem(film.source, error[0], **film.where("shot", index, key), suggestion=error[1])


def file_fault(path: Path, key: str, base: str) -> Fault | None:
    """Return why `path`, relative to `base`, cannot be the picture (`key` is "image") or the clip ("video") of a shot.

    A clip is not opened.
    """
    suffixes, other, meant = (PICTURES, CLIPS, "video") if key == "image" else (CLIPS, PICTURES, "image")
    shown = printable(path, 200)
    suffix = path.suffix.lower()
    if suffix not in suffixes and suffix in other:
        return f"{shown} is not a {'picture' if key == 'image' else 'clip'}", f"write `{meant}` instead of `{key}`"
    if absent := absence(path, suffixes, f"paths are relative to {base}"):
        return f"{shown}: {absent[0]}", absent[1]
    if not path.is_file():
        return f"{shown} is not a file", None
    if not os.access(path, os.R_OK):
        return f"{shown} cannot be read: no permission", None
    if key == "video":
        return None
    from helios_cli.recipe.pictures import picture_fault

    return picture_fault(path)


def absence(path: Path, suffixes: Iterable[str], otherwise: str | None) -> Fault | None:
    """Return why nothing is at `path`, with the name that was most likely meant or else the advice `otherwise`; None
    if something is there."""
    try:
        os.stat(path)
        return None
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last is a NUL
        pass
    except OSError as error:
        return error.strerror or str(error), None
    if is_url(path):
        return "only local files are read", "download it first"
    if os.path.islink(path):
        return f"a link to {printable(os.readlink(path), 200)}, which does not exist", None
    near = _near_file(path, suffixes)
    return "no such file", f"did you mean {near}?" if near else otherwise


def is_url(path: str | Path) -> bool:
    """Tell whether `path` is a URL; a `Path` keeps only one of its two slashes."""
    return bool(_URL.match(str(path)))


def _near_file(path: Path, suffixes: Iterable[str]) -> str | None:
    """Return the name, in the folder of `path`, of the file that was most likely meant, with any of `suffixes`."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for _, entry in zip(range(MAX_NEIGHBOURS), entries, strict=False)]
    except (OSError, ValueError):  # no such folder, or a NUL in its name
        return None
    meant = without_hidden(path.name)
    if meant in names and meant != path.name:
        return printable(meant)
    stem = Path(meant).stem
    stems = {Path(name).stem: name for name in names if Path(name).suffix.lower() in suffixes and name != path.name}
    near = stem if stem in stems else nearest(stem, stems)
    return None if near is None else printable(stems[near])


_CONVERT_PICKLE = (
    'convert it where you trust it: python -c "import torch, safetensors.torch as s; '
    "s.save_file({k: v.contiguous() for k, v in torch.load('IN', weights_only=True).items()}, 'OUT.safetensors')\""
)


def check_preview_file(path: Path) -> None:
    """Raise InputError for a preview decoder's file that is absent, a folder, or a pickle."""
    pickle_hint = f"take {path.stem}.safetensors from where it is published, or {_CONVERT_PICKLE}"
    _check_weights(path, f"--preview-decoder {printable(path, 200)}", "current folder", "decoder's file", pickle_hint)


def check_loras(loras: Iterable[Lora], origin: str) -> None:
    """Raise InputError for a located file that is absent, a folder, or a pickle."""
    for lora in loras:
        if lora.is_on_hub:
            continue
        path = Path(lora.path)
        what = f"{'--lora ' if origin == 'flag' else 'lora: '}{printable(path, 200)}"
        file, _, tail = path.name.rpartition(":")
        if file and not os.path.lexists(path) and path.with_name(file).is_file():
            hint = f"{printable(tail, 50)!r} is no weight: write {printable(file, 200)}:0.8"
            raise InputError(f"{what}: no such file", hint=hint)
        _check_weights(path, what, "current folder" if origin == "flag" else "recipe", "LoRA file", _CONVERT_PICKLE)


def _check_weights(path: Path, what: str, base: str, kind: str, pickle_hint: str) -> None:
    """Raise InputError if `what`, the file at `path`, cannot be weights; paths are relative to `base`."""
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{what}: a pickle can run any program, so only .safetensors is read", hint=pickle_hint)
    if absent := absence(path, (".safetensors",), f"paths are relative to the {base}"):
        raise InputError(f"{what}: {absent[0]}", hint=absent[1])
    if path.is_dir():
        raise InputError(f"{what}: a folder, not a {kind}", hint=_file_in(path))
    if not os.access(path, os.R_OK):
        raise InputError(f"{what}: cannot be read: no permission")


def _file_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    return f"name a file in it: {names[0]}" if names else "it has no .safetensors file"


def picture_advice(path: Path) -> str | None:
    if path.suffix.lower() in PICTURES:
        return "a film starts from a picture with --image"
    clip = "a clip is continued with --video; a helios film is rendered again with --from"
    return clip if path.suffix.lower() in CLIPS else None
