"""Launch configurations that were found on a machine (`tune.py`), in a file that the program names with `use`.

    "NVIDIA A10": {"like": "sm_89", "triton": "3.7.1", "configs": {"modulated_norm": {"num_warps": 8, "tile": 8192}}}

`like` is the chip whose configurations serve where none was found.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

from helios_kernels import devices

FIELDS = {"num_warps", "num_stages", "tile", "block_q", "block_k", "programs", "specialize"}

_file: Path | None = None


@dataclass(frozen=True)
class Tuned:
    """Of one device. `configs` has the fields of `configs.Config` by kernel."""

    like: str
    triton: str
    configs: dict[str, dict[str, int]]


def use(file: Path | None) -> None:
    """Take configurations from `file`, which need not exist, from now on; from none with None."""
    global _file
    _file = file
    of.cache_clear()
    devices.changed()


@functools.cache
def of(device: str) -> Tuned | None:
    """What was found on a device of this name; None if nothing was."""
    return _read(devices.read(_file).get(device)) if _file else None


def _read(entry: object) -> Tuned | None:
    try:
        return Tuned(entry["like"], entry["triton"], {name: _ints(config) for name, config in entry["configs"].items()})
    except (TypeError, KeyError, AttributeError, ValueError):
        return None


def keep(device: str, tuned: Tuned, file: Path) -> None:
    """Write what was found on `device`, beside what is known; a kernel that was not tuned stays as it was."""

    def beside(entry: object) -> dict:
        known = _read(entry)
        return asdict(Tuned(tuned.like, tuned.triton, {**(known.configs if known else {}), **tuned.configs}))

    devices.change(device, file, beside)
    of.cache_clear()
    devices.changed()


def _ints(config: dict) -> dict[str, int]:
    """The fields of a `Config` as they are read; ValueError for anything else."""
    good = all(name in FIELDS and isinstance(value, int) and value >= 0 for name, value in config.items())
    if not good or not config.get("num_warps"):
        raise ValueError("not a configuration")
    return dict(config)
