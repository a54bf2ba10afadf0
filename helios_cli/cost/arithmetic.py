"""How numbers are rounded on a device, as far as fingerprints need it, without torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from helios_cli import machine
from helios_cli.cost.device import Device
from helios_cli.cost.shapes import DiTShape
from helios_cli.cost.tokens import history_tokens, noisy_tokens
from helios_cli.recipe.fingerprint import Arithmetic
from helios_cli.units import PROMPT_KEYS, counted_rows
from helios_cli.versions import version_of


def arithmetic_of(device: Device, dtype: str, shapes: Iterable[str], *, quant: str, attention: str) -> Arithmetic:
    """`shapes` are the film's, of `attention_shapes`."""
    kernels = _kernels(device, attention, frozenset(shapes))
    return Arithmetic(device.name, dtype, version_of("torch"), quant, kernels)


def attention_shapes(dit: DiTShape, size: tuple[int, int], stages: int, dtype: str) -> Iterator[str]:
    """What --attention auto times on a GPU before a film of `size`, as `model.backends.shape_key` calls it."""
    history, heads = history_tokens(dit, size).total, f"{dit.num_attention_heads}x{dit.attention_head_dim} {dtype}"
    for noisy in noisy_tokens(dit, size, stages):
        rows, few = counted_rows(history + noisy), counted_rows(noisy)
        guided = few if dit.guidance_cross_attn else rows
        yield f"{rows}x{rows} {heads}"
        yield f"{few}x{rows} {heads}"
        yield from (f"{guided}x{keys} {heads} bias" for keys in PROMPT_KEYS)
        yield f"{guided}x{PROMPT_KEYS[-1]} {heads}"


def _kernels(device: Device, attention: str, shapes: frozenset[str]) -> str:
    """What is asked for, and on a GPU what was measured there; empty for a CPU that nothing is asked of."""
    asked = {"HELIOS_KERNELS": os.environ.get("HELIOS_KERNELS", "auto"), "--attention": attention}
    told = [f"{name}={value}" for name, value in asked.items() if value != "auto"]
    if device.kind == "cuda":
        found = (_measured(machine.attention_file(), device.name, shapes), _tuned(device.name))
        told += filter(None, (*found, _tried(device.name) if asked["HELIOS_KERNELS"] == "auto" else ""))
    return " ".join(told)


def _measured(file: Path, device: str, shapes: frozenset[str]) -> str:
    """A digest of which attention each of the shapes takes on the device."""
    known = _read(file)
    names = {
        key: {shape: one.get("name") for shape, one in sorted(measured.items()) if shape in shapes}
        for key, measured in known.items()
        if key.startswith(f"{device}, ")
    }
    return f"attention {_digest(names)}" if names else ""


def _tuned(device: str) -> str:
    found = _read(machine.tuned_file()).get(device)
    return f"tuned {_digest(found)}" if found else ""


def _tried(device: str) -> str:
    """`auto` takes kernels that were right when they were tried, until they are other ones."""
    found = _read(machine.tried_file()).get(device)
    return f"tried {_digest(found)}" if found else ""


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("devices", {})
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError, AttributeError):
        return {}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
