"""Measurements of GPUs in files of HELIOS_HOME: of attention, the VAE's convolutions, and products in fp8.

Each shape is timed once, over every candidate that runs and agrees with the others, and what is taken is remembered by
device, versions and shape:

    {"version": 1, "devices": {"NVIDIA H200, torch 2.13.0, triton 3.7.1": {
        "16384x16384 40x128 bfloat16": {"name": "cudnn", "ms": {"cudnn": 3.1, "flash": 3.6}, "refused": {}}}}}

A plan reads them without torch. A damaged file, or one of another version, counts as empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from helios_cli import machine


@dataclass(frozen=True)
class Measured:
    """The timing of one shape: what is taken, milliseconds of those that ran, why others were refused, and distances
    from the first one, or from the exact result where that was computed."""

    name: str
    ms: dict[str, float]
    refused: dict[str, str] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)

    def covers(self, names: Iterable[str]) -> bool:
        """Return whether all of `names` were tried."""
        return all(name in self.ms or name in self.refused for name in names)

    def fastest(self, names: Iterable[str], default: str = "sdpa") -> str:
        """Return the fastest of `names`, which leave out what is switched off; `default` if none of them runs."""
        return min((name for name in names if name in self.ms), key=lambda name: self.ms[name], default=default)


class Kind(NamedTuple):
    """A kind of measurement: its file, and the beginning of the names of kernels whose tuned configurations count."""

    file: str
    kernels: str | None = None

    def key(self, gpu: str) -> str:
        """Return the name of a GPU with the versions and configurations that decide what is fastest."""
        versions = [f"{name} {found}" for name in ("torch", "triton") if (found := machine.package_version(name))]
        tuned = machine.findings(machine.TUNED).get(gpu)
        configs = tuned.get("configs") if isinstance(tuned, dict) and self.kernels else None
        configs = configs if isinstance(configs, dict) else {}
        own = {kernel: config for kernel, config in configs.items() if kernel.startswith(self.kernels or "")}
        digest = [f"tuned {hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]}"] if own else []
        return ", ".join([gpu, *versions, *digest])

    def on(self, gpu: str) -> Measurements:
        """Return the measurements of a GPU."""
        return Measurements(machine.home() / self.file, self.key(gpu))


ATTENTION = Kind("attention.json", "attention")
CONVOLUTIONS = Kind("convolutions.json", "causal_conv")
SUMS = Kind("sums.json")


class Measurements:
    """The measurements of one device, by shape; of none by default, and in no file."""

    def __init__(self, file: Path | None = None, device: str = "") -> None:
        self.file, self.device = file, device
        self.known = {} if file is None else _read(machine.findings(file).get(device))

    def keep(self, shape: str, measured: Measured) -> None:
        self.known[shape] = measured
        if self.file is None:
            return
        from helios_kernels import devices  # with torch, as has whoever measures

        def update(entry: Any) -> dict:
            return {key: vars(one) for key, one in (_read(entry) | {shape: measured}).items()}

        try:
            devices.change(self.device, self.file, update)
        except OSError:  # a home that cannot be written: measured again next time
            self.file = None


def _read(entry: Any) -> dict[str, Measured]:
    try:
        return {
            shape: Measured(
                str(one["name"]),
                {name: float(ms) for name, ms in one["ms"].items()},
                dict(one["refused"]),
                dict(one.get("apart", {})),
            )
            for shape, one in entry.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
