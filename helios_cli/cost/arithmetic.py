"""How numbers are rounded on a device, as far as fingerprints need it, without torch."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping

from helios_cli import machine
from helios_cli.architecture import DiTConfig
from helios_cli.cost.tokens import history_tokens, noisy_tokens
from helios_cli.device import Device
from helios_cli.recipe.fingerprint import Arithmetic
from helios_cli.units import PROMPT_KEYS, counted_rows
from helios_cli.versions import version_of

LIBRARIES = ("triton", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas")
"""Packages other than torch that may compute products, convolutions and attention on a GPU."""

TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""Variables that change how float32 is rounded on a GPU."""


def arithmetic_of(
    device: Device, dtype: str, attention_taken: Mapping[str, str], *, quant: str, attention: str
) -> Arithmetic:
    """`attention_taken` names the attention of each of the film's `attention_shapes`, as far as it is known."""
    kernels = _kernels(device, attention, attention_taken)
    return Arithmetic(device.name, dtype, version_of("torch"), quant, kernels)


def attention_shapes(dit: DiTConfig, size: tuple[int, int], stages: int, dtype: str) -> Iterator[str]:
    """What --attention auto times on a GPU before a film of `size`, as `model.backends.shape_key` calls it."""
    history, heads = history_tokens(dit, size).total, f"{dit.num_attention_heads}x{dit.attention_head_dim} {dtype}"
    for noisy in noisy_tokens(dit, size, stages):
        rows, few = counted_rows(history + noisy), counted_rows(noisy)
        guided = few if dit.guidance_cross_attn else rows
        yield f"{rows}x{rows} {heads}"
        yield f"{few}x{rows} {heads}"
        yield from (f"{guided}x{keys} {heads} bias" for keys in PROMPT_KEYS)
        yield f"{guided}x{PROMPT_KEYS[-1]} {heads}"


def measured_attention(device: str, shapes: Iterable[str]) -> dict[str, str]:
    """The attention that --attention auto takes of each of these shapes, as far as they were timed on the device."""
    known = machine.findings(machine.ATTENTION).get(machine.attention_key(device), {})
    without = {"triton"} if os.environ.get("HELIOS_KERNELS") == "reference" else set()
    try:
        times = {
            shape: {name: ms for name, ms in known[shape]["ms"].items() if name not in without}
            for shape in shapes
            if shape in known
        }
        return {shape: min(ms, key=ms.get, default="sdpa") for shape, ms in times.items()}
    except (TypeError, KeyError, AttributeError):
        return {}


def _kernels(device: Device, attention: str, attention_taken: Mapping[str, str]) -> str:
    """What is asked for, and on a GPU what was measured there; empty for a CPU that nothing is asked of."""
    asked = {"HELIOS_KERNELS": os.environ.get("HELIOS_KERNELS", "auto"), "--attention": attention}
    told = [f"{name}={value}" for name, value in asked.items() if value != "auto"]
    if device.kind == "cuda":
        told += [f"{name}={os.environ[name]}" for name in TF32_VARIABLES if os.environ.get(name)]
        told += _libraries()
        taken = f"attention {_digest(dict(attention_taken))}" if attention == "auto" and attention_taken else ""
        tried = _tried(device.name) if asked["HELIOS_KERNELS"] == "auto" else ""
        told += filter(None, (taken, _tuned(device.name), tried))
    return " ".join(told)


@functools.cache
def _libraries() -> tuple[str, ...]:
    return tuple(f"{package} {version}" for package in LIBRARIES if (version := machine.package_version(package)))


def _tuned(device: str) -> str:
    found = machine.findings(machine.TUNED).get(device)
    return f"tuned {_digest(found)}" if found else ""


def _tried(device: str) -> str:
    """`auto` takes kernels that were right when they were tried, until they are other ones."""
    found = machine.findings(machine.TRIED).get(device)
    return f"tried {_digest(found)}" if found else ""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
