"""Whether the kernels were right on a GPU when they were tried there (`trial.py`), in a file that the program names
with `use`.

    "NVIDIA H200": {"made_with": "torch 2.13.0, triton 3.7.1, kernels 0f3c91a2b4d5", "faults": []}

What was tried with other versions, or other kernels, says nothing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch

from helios_kernels import devices

_file: Path | None = None
_found: dict[str, tuple[str, ...]] = {}
"""By device, what this process has tried; also where no file could be written."""


def use(file: Path | None) -> None:
    """Take verdicts from `file`, which need not exist, from now on; from none with None."""
    global _file
    _file = file
    of.cache_clear()


@functools.cache
def of(device: str) -> tuple[str, ...] | None:
    """What was wrong on a device of this name, nothing if all was right; None if these kernels were not tried there."""
    if device in _found:
        return _found[device]
    entry = devices.read(_file).get(device) if _file else None
    try:
        return tuple(map(str, entry["faults"])) if entry["made_with"] == made_with() else None
    except (TypeError, KeyError):
        return None


def keep(device: str, faults: Iterable[str], file: Path) -> None:
    """From now on, this was wrong on `device`; writes it as well. OSError if that cannot be written."""
    _found[device] = tuple(faults)
    of.cache_clear()
    devices.write(device, {"made_with": made_with(), "faults": list(_found[device])}, file)


@functools.cache
def made_with() -> str:
    """What decides beside the device whether kernels are right."""
    import triton

    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    return f"torch {torch.__version__}, triton {triton.__version__}, kernels {sources.hexdigest()[:12]}"
