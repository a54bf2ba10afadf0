"""A JSON file of what was found on this machine's devices, by their names. It can always be made again.

    {"version": 1, "devices": {"NVIDIA A10": {...}}}

One that is missing, damaged or of another version holds nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

VERSION = 1

_changes = 0


def changed() -> None:
    """What is known of devices is another from now on: what was concluded from it is to be concluded again."""
    global _changes
    _changes += 1


def changes() -> int:
    """How often that was so, for what is cached."""
    return _changes


def read(file: Path) -> dict:
    """By device, what was found; nobody has checked that yet."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    good = isinstance(stored, dict) and stored.get("version") == VERSION and isinstance(stored.get("devices"), dict)
    return stored["devices"] if good else {}


def write(device: str, found: dict, file: Path) -> None:
    """Put what was found on `device` beside what is known of others. OSError if the file cannot be written."""
    change(device, file, lambda known: found)


def change(device: str, file: Path, changed: Callable[[object], dict]) -> None:
    """Put `changed`, which is given what is known of `device` or None, in its place. The file is replaced whole, and
    processes that change it take turns. OSError if it cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _turn(file.parent):
        devices = read(file)
        devices[device] = changed(devices.get(device))
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
    """A turn at the files of `folder`. Where its file system has no locks, nobody waits."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
