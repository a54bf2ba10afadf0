"""Writes to the disk that must survive, and the errors of a disk in the user's words."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from helios_cli.errors import MachineError


def open_own(path: Path, mode: str = "r+b") -> IO[bytes]:
    """Open one of our files next to a film to write to it. OSError for a link: it leads to a file that is not ours."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file of ours that is on disk when this returns. Its folder's entry is not synced."""
    with open_own(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def disk_errors(path: Path, doing: Literal["read", "write"] = "write") -> Iterator[None]:
    """Turn an OSError in the block into a MachineError that names `path`, except FileNotFoundError in reading."""
    try:
        yield
    except OSError as error:
        if doing == "read" and isinstance(error, FileNotFoundError):
            raise
        if error.errno == errno.ENOSPC:
            raise full_disk(f"writing {path}") from error
        if error.errno == errno.EFBIG:
            raise too_large(f"writing {path}") from error
        hint = "write elsewhere with -o, and run it again"
        if error.errno == errno.EDQUOT:
            hint = f"free some space, or {hint}"
        elif not path.parent.is_dir():
            hint = f"restore the folder {path.parent}, which is gone, or {hint}"
        raise MachineError(f"cannot {doing} {path}: {error.strerror or error}", hint=hint) from error


def full_disk(doing: str) -> MachineError:
    """Return the error for a full disk; `doing` is such as "writing film.mp4"."""
    return MachineError(
        f"the disk became full while {doing}", hint="free some space, or write elsewhere with -o, and run it again"
    )


def too_large(doing: str) -> MachineError:
    return MachineError(
        f"the file-size limit was reached while {doing}", hint="raise it (`ulimit -f unlimited`) and run it again"
    )
