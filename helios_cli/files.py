"""Replaces files atomically, and lets processes that change one file take turns."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

NO_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""What file systems answer that cannot sync a folder: some encrypting and network ones."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A new, empty file beside `path` to write to. It takes the place of `path` at the end of the block; an error
    removes it and leaves `path` as it was.

    Its name begins with a dot and is no longer than 16 characters, whatever that of `path`. Its mode follows the umask.
    A link at `path` is replaced, not followed. With `durable` it has reached the disk when the block is left.
    """
    new = path.with_name(f".new-{secrets.token_hex(5)}")
    new.touch(exist_ok=False)
    try:
        yield new
        if durable:
            sync(new)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's data, or a folder's entries, reach the disk. A folder is left to a file system that cannot sync
    one, and where it may be written but not read; a file never is."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.path.isdir(path):
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def turns(folder: Path) -> Iterator[None]:
    """A turn of this process, or thread, among all that come here for the same folder: to read a file in it, change
    what it says and write it again. Where the file system has no locks, nobody waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
