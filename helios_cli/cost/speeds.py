"""Speeds of this machine, as `helios bench` and finished films measured them, in `speeds.json` of HELIOS_HOME.

    {"version": 1, "speeds": [{"device": "NVIDIA H200", "dtype": "bfloat16", "parameters": 14312427584,
                               "dit_flops": 4.1e14, "vae_flops": 1.2e14, "encode_pixels": 1.5e7,
                               "measured": "2026-11-20"}]}

`device` is a GPU's name as the driver and torch have it, or `device.cpu_name` of a CPU and its threads. `dtype` and
`parameters` are the transformer's; with products in fp8 `dtype` is "bfloat16, fp8". `dit_flops` and `vae_flops` are
operations a second, as `cost.flops` and `cost.vae` count them, `encode_pixels` pixels a second of frames in all,
of the default .mp4. `measured` is a date. A rate or the date may be missing: it was not measured. Finished films leave
their speed here, too, where none is kept or theirs is higher.

    {..., "bandwidths": {"NVIDIA H200": {"disk": 2.1e9, "cache": 3.1e10, "upload": 5.2e10}}}

Bytes a second at which weights come from the disk and out of the page cache, and over the bus to a GPU; by device.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from helios_cli import machine
from helios_cli.files import replacing, turns

VERSION = 1
BANDWIDTHS = ("disk", "cache", "upload")
RATES = ("dit_flops", "vae_flops", "encode_pixels")

NEAR = 4
"""Times larger or smaller that another model may be for a speed to hold: a small one waits for launches and memory."""


@dataclass(frozen=True)
class Speed:
    """Of one device and dtype with a transformer of so many parameters; None was not measured."""

    device: str
    dtype: str
    parameters: int
    dit_flops: float | None = None
    vae_flops: float | None = None
    encode_pixels: float | None = None
    measured: str | None = None


def speeds_file() -> Path:
    return machine.home() / "speeds.json"


def read_speeds(path: Path | None = None) -> list[Speed]:
    """What was measured here; nothing if the file is missing, damaged or of another version: it can be made again."""
    stored = _read(path or speeds_file()).get("speeds")
    return [speed for entry in stored if (speed := _speed(entry)) is not None] if isinstance(stored, list) else []


def read_bandwidths(path: Path | None = None) -> dict[str, dict[str, float]]:
    """Bytes a second that were measured here, by device."""
    stored = _read(path or speeds_file()).get("bandwidths")
    if not isinstance(stored, dict):
        return {}
    known = {device: rates for device, rates in stored.items() if isinstance(rates, dict)}
    return {
        device: {key: rates[key] for key in BANDWIDTHS if _positive(rates.get(key))} for device, rates in known.items()
    }


def _read(path: Path) -> dict:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return stored if isinstance(stored, dict) and stored.get("version") == VERSION else {}


def find_speed(device: str, dtype: str, parameters: int, path: Path | None = None) -> Speed | None:
    """What was measured with the model nearest in size to `parameters`; None if each is more than NEAR times off."""

    known = [speed for speed in read_speeds(path) if (speed.device, speed.dtype) == (device, dtype)]
    near = (speed for speed in known if is_near(speed.parameters, parameters))
    return min(near, key=lambda speed: _times(speed.parameters, parameters), default=None)


def is_near(measured: int, parameters: int) -> bool:
    """Whether a speed measured with a transformer of so many parameters holds for another."""
    return _times(measured, parameters) <= NEAR


def _times(a: int, b: int) -> float:
    return max(a, b) / min(a, b)


def record_speed(speed: Speed, path: Path | None = None) -> None:
    """Keep `speed` in place of what was known for its device, dtype and size; rates that it leaves out stay."""
    given = {name: value for name, value in asdict(speed).items() if value is not None}
    with _changing(path or speeds_file()) as (speeds, _):
        key = _key(speed)
        speeds[key] = replace(speeds.get(key, speed), **given)


def record_bandwidths(device: str, rates: Mapping[str, float], path: Path | None = None) -> None:
    """Keep bytes a second in place of what was known for `device`; those that are left out stay."""
    with _changing(path or speeds_file()) as (_, bandwidths):
        bandwidths[device] = {**bandwidths.get(device, {}), **rates}


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[tuple[dict[tuple[str, str, int], Speed], dict[str, dict[str, float]]]]:
    """What the file says, to be changed in place and written again; other processes wait for their turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with turns(path.parent):
        speeds, bandwidths = {_key(known): known for known in read_speeds(path)}, read_bandwidths(path)
        yield speeds, bandwidths
        entries = [
            {name: value for name, value in asdict(known).items() if value is not None} for known in speeds.values()
        ]
        content = {"version": VERSION, "speeds": entries, "bandwidths": bandwidths}
        with replacing(path) as new:
            new.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _key(speed: Speed) -> tuple[str, str, int]:
    return speed.device, speed.dtype, speed.parameters


def _speed(entry: object) -> Speed | None:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("device", "dtype")):
        return None
    device, dtype, parameters, measured = (entry.get(key) for key in ("device", "dtype", "parameters", "measured"))
    if not isinstance(parameters, int) or not _positive(parameters):
        return None
    rates = {name: entry[name] for name in RATES if _positive(entry.get(name))}
    return Speed(device, dtype, parameters, **rates, measured=measured if isinstance(measured, str) else None)


def _positive(value: object) -> bool:
    """Whether it is a number over 0 that a float can hold, which JSON's need not be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
