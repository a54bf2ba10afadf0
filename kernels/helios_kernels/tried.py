"""Which kernels were right on a GPU when they were tried there (`trial.py`), in a file that the program names with
`use`.

    "NVIDIA H200": {"made_with": "torch 2.13.0, triton 3.7.1, kernels 0f3c91a2b4d5",
                    "faults": {"renoise": null, "dmd_step": "small: bfloat16: error 1, bound 0.01"}, "lost": {}}

What was tried with other versions, or other kernels, says nothing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from helios_kernels import devices

_file: Path | None = None
_found: dict[str, Verdicts] = {}
"""By device, what this process has tried; also where no file could be written."""


@dataclass(frozen=True)
class Verdicts:
    """By operation: `faults`, what is wrong with it, or None where it was right; `lost`, why nobody knows, where its
    process was killed or took too long once. It is tried again."""

    faults: Mapping[str, str | None]
    lost: Mapping[str, str]

    def why_not(self, operation: str) -> str | None:
        """Why its kernel is not to run; None if it was right."""
        return self.faults.get(operation, self.lost.get(operation, "it was not tried"))


def use(file: Path | None) -> None:
    """Take verdicts from `file`, which need not exist, from now on; from none with None."""
    global _file
    _file = file
    of.cache_clear()
    devices.changed()


@functools.cache
def of(device: str) -> Verdicts | None:
    """What came of trying on a device of this name; None if these kernels were not tried there."""
    if device in _found:
        return _found[device]
    entry = devices.read(_file).get(device) if _file else None
    try:
        return Verdicts(dict(entry["faults"]), dict(entry["lost"])) if entry["made_with"] == made_with() else None
    except (TypeError, KeyError, ValueError):
        return None


def keep(device: str, verdicts: Verdicts, file: Path) -> None:
    """From now on, this is known of `device`; writes it as well. OSError if that cannot be written."""
    _found[device] = verdicts
    of.cache_clear()
    devices.changed()
    devices.write(device, {"made_with": made_with(), **asdict(verdicts)}, file)


@functools.cache
def made_with() -> str:
    """What decides beside the device whether kernels are right."""
    import triton

    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    return f"torch {torch.__version__}, triton {triton.__version__}, kernels {sources.hexdigest()[:12]}"
