"""How numbers are rounded on a device, as far as fingerprints need it, without torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

from helios_cli import machine
from helios_cli.cost.device import Device
from helios_cli.recipe.fingerprint import Arithmetic


def arithmetic_of(device: Device, dtype: str, *, quant: str, attention: str) -> Arithmetic:
    return Arithmetic(device.name, dtype, importlib.metadata.version("torch"), quant, _kernels(device, attention))


def _kernels(device: Device, attention: str) -> str:
    """What is asked for, and on a GPU what was measured there; empty for a CPU that nothing is asked of."""
    asked = {"HELIOS_KERNELS": os.environ.get("HELIOS_KERNELS", "auto"), "--attention": attention}
    told = [f"{name}={value}" for name, value in asked.items() if value != "auto"]
    if device.kind == "cuda":
        told += filter(None, (_measured(machine.attention_file(), device.name), _tuned(device.name)))
    return " ".join(told)


def _measured(file: Path, device: str) -> str:
    """A digest of which attention each shape takes on the device."""
    known = _read(file, "choices")
    names = {
        key: {shape: one.get("name") for shape, one in sorted(shapes.items())}
        for key, shapes in known.items()
        if key.startswith(f"{device}, ")
    }
    return f"attention {_digest(names)}" if names else ""


def _tuned(device: str) -> str:
    found = _read(machine.tuned_file(), "devices").get(device)
    return f"tuned {_digest(found)}" if found else ""


def _read(file: Path, key: str) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get(key, {})
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
