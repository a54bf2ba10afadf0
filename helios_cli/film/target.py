"""Where a film goes, and the names of what stands beside it while it is being made."""

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
"""Of the most that a film takes: what one without grain takes."""

FRAME_NAME = re.compile(r"frame_\d{6,}\.png")

DROPPINGS = re.compile(
    r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|@eaDir|\.directory|\.(nfs|fuse_hidden|smbdelete)[0-9A-Fa-f]+",
    re.IGNORECASE,
)
"""What file managers and network file systems leave in any folder that they come through."""

JOURNAL_HEAD = b'{"run"'
"""What a journal begins with."""


@dataclass(frozen=True)
class Target:
    """Where a film goes. `kind` is "mp4", "mkv" or "png" (a folder); `path` is absolute."""

    path: Path
    kind: str

    @classmethod
    def of(cls, path: str | os.PathLike) -> Target:
        """Read the kind off the name. A str that ends in "/", an existing folder, or no extension means a folder."""
        text = os.fspath(path)
        absolute = Path(os.path.abspath(text))
        suffix = absolute.suffix.lower()
        if text.endswith(("/", os.sep)) or absolute.is_dir() or not suffix:
            # A folder is renamed into its place, which a link to it is not.
            return cls(Path(os.path.realpath(absolute)) if os.path.islink(absolute) else absolute, "png")
        if suffix not in (".mp4", ".mkv"):
            raise InputError(
                f"{text}: films are not written as {suffix}",
                hint="end the name in .mp4 (H.264), .mkv (lossless), or / (a folder of PNG pictures)",
            )
        return cls(absolute, suffix[1:])

    @property
    def partial(self) -> Path:
        """The film while it grows, playable at any moment; a lossless one is an MP4 too until it is finished."""
        if self.kind == "mkv":
            return self.path.with_name(f"{self.path.name}.partial.mp4")
        return self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")

    @property
    def finishing(self) -> Path:
        """The whole film until it is checked and takes its name."""
        return self.path.with_name(f"{self.path.stem}.finishing{self.path.suffix}")

    @property
    def journal(self) -> Path:
        return self.path.with_name(f"{self.path.name}.journal")

    def state(self, slot: int) -> Path:
        """The file of the state after a chunk; two slots take turns, so that a torn write leaves the other one."""
        return self.path.with_name(f"{self.path.name}.state-{slot}")

    @property
    def beside(self) -> tuple[Path, ...]:
        """Files beside the unfinished film, except the journal."""
        return self.partial, self.finishing, self.state(0), self.state(1)


def sidecars_of(film: Path, *, folder: bool) -> tuple[Path, Path]:
    """The names of the record beside a film: `boat.json`, and where that is another file `boat.mp4.json`, or
    `boat.png.json` for a folder of pictures."""
    place = Path(os.path.abspath(film))
    first, second = (place.name, f"{place.name}.png") if folder else (place.stem, place.name)
    return place.parent / f"{first}.json", place.parent / f"{second}.json"  # with_name fails at the root folder


def sidecar_of(film: Path) -> Path:
    """The one of them that is read: the longer name where there is such a file."""
    first, second = sidecars_of(film, folder=film.is_dir())
    return second if second.is_file() else first


def check_target(path: str | os.PathLike, *, force: bool) -> Target:
    """Find before a render whether its film can be put at `path`; InputError says why not. Writes nothing."""
    try:
        return _checked(Target.of(path), path, force=force)
    except OSError as error:  # a folder that may not be searched, a name that is too long with what is beside it
        raise InputError(f"cannot write {path}: {error.strerror}", hint="choose another name with -o") from error


def _checked(target: Target, path: str | os.PathLike, *, force: bool) -> Target:
    folder = target.path.parent
    if target.kind == "png" and os.path.ismount(target.path):
        raise InputError(f"{path} is a mount point, and a folder is replaced as a whole", hint="name a folder in it")
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist", hint=f"run `mkdir -p {shlex.quote(str(folder))}`")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder} is not writable", hint="choose another place with -o")
    taken = is_taken(target)
    check_beside(target)
    if taken and not force:
        raise film_exists(path)
    return target


def check_beside(target: Target) -> None:
    """InputError if what has a name of the unfinished film is no unfinished film of ours. Writes nothing.

    The journal says so: it is there before all else of the film, and goes after it.
    """
    found = [path for path in target.beside if _exists(path)]  # before the journal, which another run may just begin
    for path in (*found, target.journal):
        if path.is_symlink():
            raise _not_ours(path, "it is a link, which helios does not follow")
    head = _head(target.journal)
    if head is not None and head != JOURNAL_HEAD[: len(head)]:
        raise _not_ours(target.journal, "it is no journal of helios")
    if found and head is None:
        raise _not_ours(found[0], f"there is no journal {target.journal.name} beside it")
    if target.kind == "png":
        holds_frames(target.partial)


def check_inputs(inputs: Iterable[Path], places: Iterable[Path]) -> None:
    """InputError if one of `inputs` is, under whatever name, at one of the places that a film takes, or in one."""
    taken = [place for place in places if os.path.exists(place)]
    for path in filter(os.path.exists, inputs):
        real = Path(os.path.realpath(path))
        above = (real, *real.parents)
        for place in taken:
            if any(os.path.samefile(folder, place) for folder in above):
                raise InputError(
                    f"the film would take the place of {path}, which it is made from",
                    hint="choose another name with -o",
                )


def _head(journal: Path) -> bytes | None:
    if not _exists(journal):
        return None
    if not stat.S_ISREG(journal.stat().st_mode):
        raise _not_ours(journal, "it is no file")
    with journal.open("rb") as file:
        return file.read(len(JOURNAL_HEAD))


def _not_ours(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} does not belong to an unfinished film: {why}", hint="move it elsewhere, or choose another name with -o"
    )


def is_taken(target: Target) -> bool:
    """Whether a film is there already, or another file in its place; InputError for a folder with other files."""
    return holds_frames(target.path) if target.kind == "png" else _exists(target.path)


def film_exists(path: str | os.PathLike) -> InputError:
    return InputError(f"{path} exists", hint="add --force to replace it, or choose another name with -o")


def check_space(target: Target, film_bytes: int) -> str:
    """Find before a render whether the disk holds the film, which takes `film_bytes` at most; a notice if it may not.

    MachineError if it surely does not. While it is finished a film stands there twice, growing and whole.
    """
    free = machine.disk_free_bytes(target.path.parent)
    if target.partial.is_file():  # an unfinished run's part is in use already
        free += target.partial.stat().st_size
    most = film_bytes * (1 if target.kind == "png" else 2)
    if free < LEAST_SHARE * most:
        raise MachineError(
            f"the film takes {format_bytes(LEAST_SHARE * most)} to {format_bytes(most)} while it is made, "
            f"{format_bytes(free)} are free in {target.path.parent}",
            hint="free some space, write elsewhere with -o, or raise --crf",
        )
    if free < most:
        return (
            f"the film may take {format_bytes(most)} while it is made, {format_bytes(free)} are free; "
            "if the disk becomes full, what is done stays, and the same command goes on"
        )
    return ""


def _exists(path: Path) -> bool:
    """As Path.exists, but a link to nowhere counts, and a name that cannot be is an OSError."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def holds_frames(folder: Path) -> bool:
    """Whether the folder has frames of an earlier film; InputError if it has, or is, anything else.

    A folder is replaced as a whole, so one with other files in it is never a target, not even by --force.
    """
    if not _exists(folder):
        return False
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder", hint="end the name in .mp4 or .mkv, or choose another one with -o"
        )
    names = [name for name in os.listdir(folder) if not DROPPINGS.fullmatch(name)]
    foreign = next((name for name in sorted(names) if not FRAME_NAME.fullmatch(name)), None)
    if foreign:
        raise InputError(
            f"the folder {folder} holds other files ({foreign})", hint="name a new or empty folder with -o"
        )
    return bool(names)
