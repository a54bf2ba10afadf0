"""The place of a film, and the names of the files next to it while it is being made."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helios_cli import machine
from helios_cli.errors import InputError, MachineError
from helios_cli.units import format_bytes

LEAST_SHARE = 0.2
"""Share of a film's largest size that a film without grain takes."""

FRAME_NAME = re.compile(r"frame_\d{6,}\.png")

DROPPINGS = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|@eaDir|\.directory|\.(nfs|fuse_hidden|smbdelete)[0-9A-Fa-f]+",
    re.IGNORECASE,
)
"""Files that file managers and network file systems leave in any folder."""

JOURNAL_HEAD = b'{"run"'
"""The first bytes of a journal."""

OTHER_NAME = "choose another name with -o"


@dataclass(frozen=True)
class Target:
    """The place of a film. `kind` is "mp4", "mkv" or "png" (a folder); `path` is absolute."""

    path: Path
    kind: str

    @classmethod
    def of(cls, path: str | os.PathLike) -> Target:
        """Read the kind off the name. A str that ends in "/", an existing folder, or no extension means a folder."""
        text = os.fspath(path)
        absolute = Path(os.path.abspath(text))
        suffix = absolute.suffix.lower()
        if text.endswith("/") or absolute.is_dir() or not suffix:
            # A folder is renamed into its place, which does not work with a link to it.
            return cls(Path(os.path.realpath(absolute)) if os.path.islink(absolute) else absolute, "png")
        if suffix not in (".mp4", ".mkv"):
            raise InputError(
                f"{text}: films cannot be written as {suffix}",
                hint="end the name in .mp4 (H.264), .mkv (lossless), or / (a folder of PNG pictures)",
            )
        return cls(absolute, suffix[1:])

    @property
    def partial(self) -> Path:
        """The growing film, playable at any moment; a lossless one is an MP4 too until it is finished."""
        if self.kind == "mkv":
            return self.path.with_name(f"{self.path.name}.partial.mp4")
        return self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")

    @property
    def finishing(self) -> Path:
        """The whole film until it is checked and takes its name."""
        return self.path.with_name(f"{self.path.stem}.finishing{self.path.suffix}")

    @property
    def looped(self) -> Path:
        """One pass of the sound, while the whole film is written with repetitions of it."""
        return self.path.with_name(f"{self.path.name}.finishing.flac")

    @property
    def journal(self) -> Path:
        return self.path.with_name(f"{self.path.name}.journal")

    def state(self, slot: int) -> Path:
        """The file of the state after a chunk; two slots alternate, so that a torn write spares the other one."""
        return self.path.with_name(f"{self.path.name}.state-{slot}")

    @property
    def parts(self) -> Path:
        """The folder of finished chunks of a film that several workers render (`film.parts`)."""
        return self.path.with_name(f"{self.path.name}.parts")

    @property
    def beside(self) -> tuple[Path, ...]:
        """The files next to the unfinished film, except the journal."""
        return self.partial, self.finishing, self.looped, self.state(0), self.state(1)

    def named(self, suffix: str) -> Path:
        """The path of another file about the film: `boat` + `suffix` for `boat.mp4` and for the folder `boat`."""
        return self.path.with_name((self.path.name if self.kind == "png" else self.path.stem) + suffix)


def sidecars_of(film: Path, *, folder: bool) -> tuple[Path, Path]:
    """Return the possible names of a film's sidecar: `boat.json`, and for when that is another file `boat.mp4.json`, or
    `boat.png.json` for a folder of pictures."""
    place = Path(os.path.abspath(film))
    first, second = (place.name, f"{place.name}.png") if folder else (place.stem, place.name)
    return place.parent / f"{first}.json", place.parent / f"{second}.json"  # with_name fails at the root folder


def sidecar_of(film: Path) -> Path:
    """Return the sidecar to read: the longer name if there is such a file."""
    first, second = sidecars_of(film, folder=film.is_dir())
    return second if second.is_file() else first


def check_target(path: str | os.PathLike, *, force: bool) -> Target:
    """Check before a render that its film can be put at `path`. InputError if it cannot. Writes nothing."""
    try:
        target = Target.of(path)
        folder = target.path.parent
        if target.kind == "png" and os.path.ismount(target.path):
            raise InputError(
                f"{path} is a mount point, which a folder of frames cannot replace", hint="name a folder in it"
            )
        if not folder.is_dir():
            raise InputError(f"the folder {folder} does not exist", hint=f"run `mkdir -p {shlex.quote(str(folder))}`")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"the folder {folder} is not writable", hint="choose another place with -o")
        is_there = is_taken(target)
        check_beside(target)
    except OSError as error:  # a folder that may not be searched, a name that is too long for the files next to it
        raise InputError(f"cannot write {path}: {error.strerror}", hint=OTHER_NAME) from error
    if is_there and not force:
        raise film_exists(path)
    return target


def check_beside(target: Target) -> None:
    """Raise InputError if files under the names of the unfinished film do not belong to one. Writes nothing.

    The journal proves that they do: it is created before all other files of the film, and removed after them.
    """
    there = [path for path in target.beside if _exists(path)]  # before the journal, which another run may just begin
    for path in (*there, target.journal):
        if path.is_symlink():
            raise _foreign(path, "it is a link, which helios does not follow")
    if _exists(target.journal):
        if not stat.S_ISREG(target.journal.stat().st_mode):
            raise _foreign(target.journal, "not a file")
        with target.journal.open("rb") as file:
            head = file.read(len(JOURNAL_HEAD))
        if not JOURNAL_HEAD.startswith(head):
            raise _foreign(target.journal, "not a helios journal")
    elif there:
        raise _foreign(there[0], f"there is no journal {target.journal.name} next to it")
    if target.kind == "png":
        holds_frames(target.partial)


def _foreign(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} does not belong to an unfinished film: {why}", hint=f"move it elsewhere, or {OTHER_NAME}"
    )


def check_inputs(inputs: Iterable[Path], places: Iterable[Path]) -> None:
    """Raise InputError if one of `inputs` is, under any name, at or in one of the places that a film takes."""
    there = [place for place in places if os.path.exists(place)]
    for path in filter(os.path.exists, inputs):
        real = Path(os.path.realpath(path))
        if any(os.path.samefile(folder, place) for place in there for folder in (real, *real.parents)):
            raise InputError(f"the film would replace {path}, which it is made from", hint=OTHER_NAME)


def is_taken(target: Target) -> bool:
    """Return whether a film, or another file, is at the target; InputError for a folder with other files."""
    return holds_frames(target.path) if target.kind == "png" else _exists(target.path)


def film_exists(path: str | os.PathLike) -> InputError:
    return InputError(f"{path} exists", hint=f"add --force to replace it, or {OTHER_NAME}")


def check_space(target: Target, film_bytes: int, growing_bytes: int = 0) -> str:
    """Check before a render that the disk holds the film, which takes `film_bytes` at most. Returns a notice if it may
    not; MachineError if it cannot. While a film is finished it is there twice, growing and whole; one that is changed
    after the render has a growing one of `growing_bytes` in addition.
    """
    free = machine.disk_free_bytes(target.path.parent)
    if target.partial.is_file():  # an unfinished run's part is in use already
        free += target.partial.stat().st_size
    most = film_bytes * (1 if target.kind == "png" else 2) + growing_bytes
    if free < LEAST_SHARE * most:
        raise MachineError(
            f"making the film takes {format_bytes(LEAST_SHARE * most)} to {format_bytes(most)}, but only "
            f"{format_bytes(free)} is free in {target.path.parent}",
            hint="free some space, write elsewhere with -o, or raise --crf",
        )
    if free < most:
        return (
            f"making the film may take {format_bytes(most)}, but only {format_bytes(free)} is free; "
            "if the disk fills up, finished chunks are kept and the same command continues"
        )
    return ""


def _exists(path: Path) -> bool:
    """Return whether there is a file, even a link to nowhere. OSError for an impossible name."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def holds_frames(folder: Path) -> bool:
    """Return whether the folder has frames of an earlier film. InputError if it is not a folder, or has other files.

    A folder is replaced as a whole, so one with other files in it is never a target, even with --force.
    """
    if not _exists(folder):
        return False
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", hint=f"end the name in .mp4 or .mkv, or {OTHER_NAME}")
    names = [name for name in os.listdir(folder) if not DROPPINGS.fullmatch(name)]
    foreign = next((name for name in sorted(names) if not FRAME_NAME.fullmatch(name)), None)
    if foreign:
        raise InputError(
            f"the folder {folder} holds other files ({foreign})", hint="name a new or empty folder with -o"
        )
    return bool(names)
