"""JSON files of what was learned about this machine's devices, by name. They can always be made again.

    {"version": 1, "devices": {"NVIDIA A10": {...}}}

A file that is missing, damaged or of another version holds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

VERSION = 1

T = TypeVar("T")

_changes = 0


def changed() -> None:
    """Invalidate what was concluded from the files."""
    global _changes
    _changes += 1


def changes() -> int:
    """Return the number of calls of `changed`: a key for caches."""
    return _changes


def read(file: Path) -> dict:
    """Return the entries by device; their content is not checked."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    good = isinstance(stored, dict) and stored.get("version") == VERSION and isinstance(stored.get("devices"), dict)
    return stored["devices"] if good else {}


def write(device: str, entry: dict, file: Path) -> None:
    """Replace the entry of `device`. OSError if the file cannot be written."""
    change(device, file, lambda _: entry)


def change(device: str, file: Path, update: Callable[[Any], dict]) -> None:
    """Replace the entry of `device` by `update` of it, or of None.

    The file is replaced whole, and processes that change it take turns. OSError if it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _turn(file.parent):
        devices = read(file)
        devices[device] = update(devices.get(device))
        new = file.with_name(f".new-{secrets.token_hex(5)}")
        try:
            with new.open("x", encoding="utf-8") as opened:
                json.dump({"version": VERSION, "devices": devices}, opened, indent=2)
            os.replace(new, file)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold a lock on the files of `folder`. Where its file system has no locks, nobody waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Entries(Generic[T]):
    """The entries of the file that the program names with `use`, parsed when they are first needed."""

    def __init__(self, parse: Callable[[Any], T]) -> None:
        self._parse = parse
        self._file: Path | None = None
        self._parsed: dict[str, T | None] = {}

    def use(self, file: Path | None) -> None:
        """Read `file`, which need not exist, from now on; None for no file."""
        self._file = file
        self.forget()

    def forget(self) -> None:
        self._parsed.clear()
        changed()

    def of(self, device: str) -> T | None:
        """Return the entry of a device; None if there is none that can be read."""
        if device not in self._parsed:
            self._parsed[device] = self.parsed(read(self._file).get(device)) if self._file else None
        return self._parsed[device]

    def parsed(self, entry: object) -> T | None:
        try:
            return self._parse(entry)
        except (TypeError, LookupError, AttributeError, ValueError):
            return None
