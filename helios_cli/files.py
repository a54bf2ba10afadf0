"""Replaces files atomically, lets processes take turns at changing one, says what prevents writing one, hashes files
and orders their names."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

NEW = ".new-"
"""The beginning of the names of files that are not whole yet."""

NO_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""The errors of file systems that cannot sync a folder: some encrypting and network ones."""


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give the path of a new, empty file to write, which replaces `path` when the block ends without an error.

    An error removes the new file and leaves `path` as it was. The new file is in the same folder, its name has at most
    16 characters and begins with a dot, and its mode follows the umask. A link at `path` is not followed. With
    `durable` the file and its name are on the disk when the block ends.
    """
    new = path.with_name(f"{NEW}{secrets.token_hex(5)}")
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


NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""The errors of file systems without hard links."""


def create_once(path: Path, data: bytes) -> bool:
    """Create a file with `data`, unless there is one. Returns whether it is ours: of several processes one succeeds.

    The file appears whole.
    """
    new = path.with_name(f"{NEW}{secrets.token_hex(5)}")
    try:
        new.write_bytes(data)
        return link_once(new, path)
    finally:
        new.unlink(missing_ok=True)


def link_once(new: Path, path: Path) -> bool:
    """Give a file a second name, unless another file has it. Returns whether it has it now.

    Where the file system has no links the file is renamed, and two processes that try at the same moment may both
    succeed.
    """
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            return False
        os.rename(new, path)
    return True


def sync(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to the disk.

    A folder that cannot be synced, or may be written but not read, is left alone; for a file both are errors.
    """
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
    """Hold a lock on `folder`, so that one process or thread at a time reads, changes and writes a file in it.

    Where the file system has no locks, nobody waits.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def obstacle(path: Path) -> str | None:
    """Return why no file can be written to `path`, before the work whose result it is to take; or None."""
    if os.path.isdir(path):
        return "it is a folder"
    if os.path.exists(path):
        return None if os.access(path, os.W_OK) else "the file there is not writable"
    if not os.path.isdir(path.parent):
        return f"the folder {path.parent} does not exist"
    return None if os.access(path.parent, os.W_OK | os.X_OK) else f"the folder {path.parent} is not writable"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits. OSError if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def by_number(name: str) -> list[str | int]:
    """Return a sort key by which `frame_10` comes after `frame_9`; text and numbers alternate in it."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
