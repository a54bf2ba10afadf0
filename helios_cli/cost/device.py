"""The device that a render would run on, as far as can be told without torch: nothing is opened on it.

The rules are those of `machine.pick_device` and `pick_dtype`, which ask torch; a render that finds otherwise goes by
what it finds.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from helios_cli import machine
from helios_cli.cost.gpus import known_gpu, require_gpu
from helios_cli.errors import InputError, MachineError
from helios_cli.units import counted
from helios_cli.weights.fp8 import FP8_CAPABILITY, Quant

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}

NVIDIA_QUERY = ["--query-gpu=name,compute_cap,memory.total,memory.free", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Device:
    """Where the model would run.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        name: its model; for a CPU with what decides speed and rounding, "AMD EPYC, avx512f, 2 threads".
        total_bytes, free_bytes: its memory; None where it was asked for and is not to be seen from here.
        capability: CUDA's (major, minor), or None.
    """

    kind: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    capability: tuple[int, int] | None = None


def find_device(name: str = "auto") -> Device:
    """The device that `--device name` would take. InputError for a name that is none."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"--device {name}: no such kind of device", hint="write auto, cuda, cuda:1, mps or cpu")
    if name.startswith("cuda"):
        index = int(name.removeprefix("cuda").removeprefix(":") or 0)
        return _nvidia(index) or Device("cuda", "a GPU that is not seen from here", None, None)
    if name == "auto" and _torch_has("torch_cuda") and (gpu := _nvidia(0)):
        return gpu
    if name == "mps" or (name == "auto" and sys.platform == "darwin" and platform.machine() == "arm64"):
        memory = machine.host_memory()
        return Device("mps", machine.cpu().model, memory.total_bytes, memory.available_bytes)
    return _host()


def other_device(name: str) -> Device:
    """A GPU that is not here, by its name in `cost.gpus`, with all of its memory free. InputError for another name."""
    known, gpu = require_gpu(name)
    return Device("cuda", known, gpu.total_bytes, gpu.total_bytes)


def require_quant(quant: Quant, device: Device) -> None:
    """MachineError where products in fp8 are asked for and `device` is known to have none that helios can use."""
    known = known_gpu(device.name)
    old = device.capability is not None and device.capability < FP8_CAPABILITY
    if quant == "fp8" and device.kind != "cpu" and (device.kind != "cuda" or old or (known and not known[1].fp8_flops)):
        raise MachineError(
            f"--quant fp8: {device.name} has no fp8 products that helios can use (NVIDIA's from Ada on have)",
            hint="leave out --quant",
        )


def pick_dtype(name: str, device: Device) -> str:
    """The dtype that `--dtype name` would be on `device`."""
    if name != "auto":
        return name
    if device.kind == "cuda":
        return "float16" if device.capability and device.capability < (8, 0) else "bfloat16"
    if device.kind == "cpu" and any(feature.endswith("bf16") for feature in machine.cpu().features):
        return "bfloat16"
    return "float32"


def cpu_name(threads: int) -> str:
    """A CPU as `Device.name` has it: its model, its instructions and what limits them, and the threads that the model
    runs on."""
    cpu = machine.cpu()
    return ", ".join([cpu.model, *cpu.features, *cpu.limits, counted(threads, "thread")])


def _host() -> Device:
    memory = machine.host_memory()
    return Device("cpu", cpu_name(machine.cpu_threads()), memory.total_bytes, memory.available_bytes)


def for_model(device: Device, parameters: int) -> Device:
    """`device` as a transformer of `parameters` uses it: on a CPU a small one runs on fewer threads."""
    return replace(device, name=cpu_name(machine.cpu_threads(parameters))) if device.kind == "cpu" else device


def _torch_has(library: str) -> bool:
    """Whether the installed PyTorch comes with a library, looked up without importing it."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    return folder is not None and any((folder / name).exists() for name in (f"lib{library}.so", f"{library}.dll"))


def _nvidia(index: int) -> Device | None:
    """GPU `index` of those that CUDA_VISIBLE_DEVICES leaves, by the driver's own program; None without one."""
    program = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [entry.strip() for entry in visible.split(",")]
        wanted = chosen[index] if index < len(chosen) else ""
    else:
        wanted = str(index)
    if program is None or wanted in ("", "-1"):
        return None
    try:
        answer = subprocess.run([program, *NVIDIA_QUERY, "-i", wanted], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = re.fullmatch(r"(.+), (\d+)\.(\d+), (\d+), (\d+)", answer.stdout.strip())
    if answer.returncode or not fields:
        return None
    name, major, minor, total, free = fields.groups()
    return Device("cuda", name, int(total) * 2**20, int(free) * 2**20, (int(major), int(minor)))
