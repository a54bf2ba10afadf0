"""A JSON file of what was found on this machine's devices, by their names. It can always be made again.

    {"version": 1, "devices": {"NVIDIA A10": {...}}}

One that is missing, damaged or of another version holds nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

VERSION = 1


def read(file: Path) -> dict:
    """By device, what was found; nobody has checked that yet."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    good = isinstance(stored, dict) and stored.get("version") == VERSION and isinstance(stored.get("devices"), dict)
    return stored["devices"] if good else {}


def write(device: str, found: dict, file: Path) -> None:
    """Put what was found on `device` beside what is known of others. The file is replaced whole. OSError if it cannot
    be written."""
    known = {**read(file), device: found}
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    with open(descriptor, "w", encoding="utf-8") as opened:
        json.dump({"version": VERSION, "devices": known}, opened, indent=2)
    os.replace(partial, file)
