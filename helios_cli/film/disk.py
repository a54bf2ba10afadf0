"""Bytes that must survive: writes that have reached the disk when they return, and bytes that prove themselves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from helios_cli.errors import MachineError


def open_own(path: Path, mode: str = "r+b") -> BinaryIO:
    """Open one of our files beside a film to write to it. A link in its place is an OSError: it leads to a file that is
    not ours."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def write_synced(path: Path, data: bytes) -> None:
    """Write a file of ours that is on disk when this returns. Its folder's entry is not synced."""
    with open_own(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


SEAL = struct.Struct(">32sQ")
"""SHA-256 and length of what follows."""


def seal(body: bytes) -> bytes:
    """`body` behind its digest and length, so that damage shows when it is read."""
    return _head(body) + body


def unseal(data: bytes) -> bytes | None:
    """The body of what was sealed; None if that is not all there, or not as it was."""
    body = data[SEAL.size :]
    return body if _head(body) == data[: SEAL.size] else None


def _head(body: bytes) -> bytes:
    return SEAL.pack(hashlib.sha256(body).digest(), len(body))


def is_sealed(path: Path) -> bool:
    """Whether there is a sealed file that may be read and has its whole length. Its body is not read."""
    try:
        with path.open("rb") as file:
            head = file.read(SEAL.size)
            return len(head) == SEAL.size and os.fstat(file.fileno()).st_size == SEAL.size + SEAL.unpack(head)[1]
    except OSError:
        return False


@contextlib.contextmanager
def disk_errors(path: Path, doing: Literal["read", "write"] = "write") -> Iterator[None]:
    """An OSError inside becomes a MachineError that names `path`; where it is read, that it is not there is none."""
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
            hint = f"see where {path.parent} has gone, or {hint}"
        raise MachineError(f"cannot {doing} {path}: {error.strerror or error}", hint=hint) from error


def full_disk(doing: str) -> MachineError:
    """`doing`: such as "writing film.mp4"."""
    return MachineError(
        f"the disk became full while {doing}", hint="free some space, or write elsewhere with -o, and run it again"
    )


def too_large(doing: str) -> MachineError:
    """`doing`: such as "writing film.mp4"."""
    return MachineError(
        f"the file-size limit was reached while {doing}", hint="raise it (`ulimit -f unlimited`) and run it again"
    )
