"""Bytes that must survive: writes that have reached the disk when they return, and bytes that prove themselves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from helios_cli.errors import MachineError

DIGEST_BYTES = 32


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that is on disk when this returns. Its folder's entry is not synced."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def seal(body: bytes) -> bytes:
    """`body` behind its SHA-256, so that damage shows when it is read."""
    return hashlib.sha256(body).digest() + body


def unseal(path: Path) -> bytes | None:
    """The body of a sealed file; None if there is none, or not all of it, or not as it was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body = data[DIGEST_BYTES:]
    return body if hashlib.sha256(body).digest() == data[:DIGEST_BYTES] else None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError inside becomes a MachineError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise full_disk(f"writing {path}") from error
        if error.errno == errno.EFBIG:
            raise too_large(f"writing {path}") from error
        hint = "write elsewhere with -o, and run it again"
        if error.errno == errno.EDQUOT:
            hint = f"free some space, or {hint}"
        elif not path.parent.is_dir():
            hint = f"see where {path.parent} has gone, or {hint}"
        raise MachineError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


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
