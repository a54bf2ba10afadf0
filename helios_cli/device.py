"""The device that a model runs on, as one value: found without torch for a plan, with torch for a render."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli import machine
from helios_cli.errors import InputError, MachineError
from helios_cli.units import counted

if TYPE_CHECKING:
    import torch

ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of a number, by the names of --dtype."""

NVIDIA_QUERY = ["--query-gpu=name,compute_cap,memory.total,memory.free", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class Device:
    """A device that the model can run on.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        name: The model of the GPU. For a CPU also what decides speed and rounding: "AMD EPYC, avx512f, 2 threads".
        total_bytes, free_bytes: Its memory; None for a GPU that cannot be queried. On a CPU the host's, within the
            limits of its container.
        capability: CUDA's (major, minor), or None.
    """

    kind: str
    name: str
    total_bytes: int | None
    free_bytes: int | None
    capability: tuple[int, int] | None = None

    def with_model(self, parameters: int, ranks: int = 1) -> Device:
        """Return the device as a transformer of `parameters` uses it: on a CPU a small one runs on one thread, and
        `ranks` that make its calls together share the cores."""
        threads = max(1, machine.cpu_threads(parameters) // ranks)
        return replace(self, name=cpu_name(threads)) if self.kind == "cpu" else self


def cpu_name(threads: int) -> str:
    """Return a CPU's `Device.name`: its model, its instructions, the variables that limit them, and the threads."""
    cpu = machine.cpu()
    return ", ".join([cpu.model, *cpu.features, *cpu.limits, counted(threads, "thread")])


SMALL_BYTES = 2**30
"""Size in float32 of a transformer and a text encoder that are small, see `latent_dtype`."""


def latent_dtype(dtype: str, kind: str, parameters: Mapping[str, int], *, quant: str = "none") -> str:
    """Return the dtype of the transformer and the text encoder, in a film in `dtype`; `parameters` are by component.

    It is float32 for a small model in bfloat16 on a CPU. What is rounded in latents grows from chunk to chunk, since
    each chunk continues the latents of those before; and nearly all the time of such a model goes into its VAE.
    """
    is_small = 4 * (parameters["transformer"] + parameters["text_encoder"]) <= SMALL_BYTES
    return "float32" if (kind, dtype, quant) == ("cpu", "bfloat16", "none") and is_small else dtype


# Without torch


def find_device(name: str = "auto") -> Device:
    """Return the device that `pick_device(name)` takes, without opening it. Raises InputError for an unknown name."""
    _require_known(name, "auto")
    if name.startswith("cuda"):
        return _nvidia(_index(name)) or Device("cuda", "a GPU that cannot be queried", None, None)
    if name == "auto" and _torch_has("torch_cuda") and (gpu := _nvidia(0)):
        return gpu
    memory = machine.host_memory()
    if name == "mps" or (name == "auto" and sys.platform == "darwin" and platform.machine() == "arm64"):
        return Device("mps", machine.cpu().model, memory.total_bytes, memory.available_bytes)
    return Device("cpu", cpu_name(machine.cpu_threads()), memory.total_bytes, memory.available_bytes)


def find_vae_device(name: str | None, device_name: str, device: Device) -> Device | None:
    """Return the device that `pick_vae_device(name)` takes next to `device`, which is called `device_name`, without
    opening it; None if it is the same. Raises InputError for one that makes no sense next to it."""
    return find_device(name) if name is not None and is_second(name, device_name, device) else None


def is_second(name: str, device_name: str, device: Device) -> bool:
    """Return whether `name` is another device than `device`, which is called `device_name`. Raises InputError for one
    that makes no sense next to it."""
    _require_known(name, flag="--vae-device")
    kind = name.partition(":")[0]
    if kind == device.kind and (kind != "cuda" or _index(name) == _index(device_name)):
        return False
    _require_pair(name, device.kind)
    return True


def _require_pair(name: str, kind: str) -> None:
    """Raise InputError for a VAE on the device `name` if the transformer's device, of this `kind`, is a CPU."""
    if kind == "cpu":
        raise InputError(
            f"--vae-device {name}: the transformer computes on the CPU, where a second device saves nothing",
            hint="choose a GPU with --device, or leave out --vae-device",
        )


def _require_known(name: str, *others: str, flag: str = "--device") -> None:
    if name not in others and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        names = "auto, cuda, cuda:1, mps or cpu" if flag == "--device" else "cuda, cuda:1, mps or cpu"
        raise InputError(f"{flag} {name}: no such kind of device", hint=f"write {names}")


def gpu_index(name: str | None) -> int:
    """Return the number of the GPU that a device's name ends in; -1 for another device."""
    return _index(name) if name is not None and name.startswith("cuda") else -1


def is_gpu_of_rank(vae_device: str | None, device: str, ranks: int) -> bool:
    """Return whether the VAE is on the GPU of one of the ranks, which follow each other from `device` on, other than
    the first."""
    return 0 < gpu_index(vae_device) - max(0, gpu_index(device)) < ranks


def _index(name: str) -> int:
    """Return the index of a GPU by its name; 0 for `auto`."""
    return int(name.removeprefix("auto").removeprefix("cuda").removeprefix(":") or 0)


def _torch_has(library: str) -> bool:
    """Return whether the installed PyTorch comes with a library, checked without importing it."""
    spec = importlib.util.find_spec("torch")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    return folder is not None and (folder / f"lib{library}.so").exists()


def find_gpus() -> tuple[Device, ...]:
    """Return the GPUs that torch would call cuda:0, cuda:1 and so on, found without opening them; none if it has no
    CUDA."""
    visible = _visible()
    if not _torch_has("torch_cuda"):
        return ()
    if visible is None:
        return _queried()
    found = []
    for index in range(len(visible)):  # CUDA stops at the first one that is not there
        if (gpu := _nvidia(index)) is None:
            break
        found.append(gpu)
    return tuple(found)


def visible_gpus(count: int) -> list[str]:
    """Return the first `count` GPUs as CUDA_VISIBLE_DEVICES names them."""
    return (_visible() or [str(index) for index in range(count)])[:count]


def _visible() -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, by index or UUID; None for all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is None else [entry.strip() for entry in visible.split(",")]


def _nvidia(index: int) -> Device | None:
    """Return GPU `index` of those that are visible, as nvidia-smi reports it; None without one."""
    visible = _visible()
    identifier = str(index) if visible is None else visible[index] if index < len(visible) else ""
    found = () if identifier in ("", "-1") else _queried("-i", identifier)
    return found[0] if found else None


def _queried(*which: str) -> tuple[Device, ...]:
    """Return the GPUs that nvidia-smi reports; none if there is no nvidia-smi, or it reports something else."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        answer = subprocess.run([program, *NVIDIA_QUERY, *which], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = []
    for line in () if answer.returncode else answer.stdout.strip().splitlines():
        fields = re.fullmatch(r"(.+), (\d+)\.(\d+), (\d+), (\d+)", line.strip())
        if not fields:
            return ()
        name, major, minor, total, free = fields.groups()
        found.append(Device("cuda", name, int(total) * 2**20, int(free) * 2**20, (int(major), int(minor))))
    return tuple(found)


# With torch


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` is the first GPU, else the CPU. Raises InputError for an unknown name,
    MachineError for a device that is not there."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = _present(name, "--device")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # streams, events and graphs are the current device's
    return device


def pick_vae_device(name: str | None, device: torch.device) -> torch.device:
    """Return the device called `name`, for the VAE and the text encoder; None is `device`, the transformer's.

    Raises as `pick_device`, and InputError for a second device next to a CPU."""
    other = device if name is None else _present(name, "--vae-device")
    if other != device:
        _require_pair(str(name), device.type)
    return other


def _present(name: str, flag: str) -> torch.device:
    """Return the device called `name`, the value of `flag`. Raises InputError or MachineError, which name the flag."""
    import torch

    _require_known(name, flag=flag)
    cpu = f"use {flag} cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise MachineError(f"{flag} mps: this machine or this PyTorch has no Metal device", hint=cpu)
    if not name.startswith("cuda"):
        return torch.device(name)
    hint = f"{cpu}; `helios doctor` shows what is there"
    count, index = torch.cuda.device_count(), _index(name)
    if count == 0 and torch.version.cuda is None and torch.version.hip is None:
        raise MachineError(f"{flag} {name}: PyTorch {torch.__version__} is built without GPU support", hint=hint)
    if count == 0:
        raise MachineError(f"{flag} {name}: PyTorch finds no GPU (no driver, or one too old for it)", hint=hint)
    if index >= count:
        known = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MachineError(f"{flag} {name}: this machine has {known}", hint=hint)
    return torch.device("cuda", index)


def device_of(device: torch.device) -> Device:
    """Describe a device of torch. A GPU's free memory excludes what other processes hold; querying it opens a context.

    A CPU has as many threads as torch uses now.
    """
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        capability = torch.cuda.get_device_capability(device)
        return Device("cuda", torch.cuda.get_device_name(device), total, free, capability)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Device("mps", machine.cpu().model, total, total - torch.mps.driver_allocated_memory())
    memory = machine.host_memory()
    return Device(device.type, cpu_name(torch.get_num_threads()), memory.total_bytes, memory.available_bytes)


def gpus() -> dict[str, Device]:
    """Return the GPUs that this PyTorch can use, by their names for --device. Opens a context on each."""
    import torch

    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return {name: device_of(torch.device(name)) for name in names}


# What it computes in


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pick_dtype(name: str, device: Device) -> tuple[str, str]:
    """Return the dtype called `name`, and why; `auto` is the smallest that is fast and safe on `device`."""
    if name != "auto":
        if name not in ITEMSIZE:
            raise InputError(f"--dtype {name}: no such dtype", hint=f"write auto, {', '.join(ITEMSIZE)}")
        return name, "requested"
    if device.kind == "cuda":
        chip = "compute capability {}.{}".format(*device.capability) if device.capability else "a GPU of today"
        if device.capability and device.capability < (8, 0):
            return "float16", f"{chip} has no fast bfloat16"
        return "bfloat16", f"{chip} multiplies bfloat16 at full speed"
    if device.kind == "cpu":
        fast = [feature for feature in machine.cpu().features if feature.endswith("bf16")]
        if fast:
            return "bfloat16", f"the CPU multiplies bfloat16 in hardware ({fast[-1]})"
        return "float32", "the CPU has no bfloat16 instructions"
    return "float32", f"no smaller dtype has been tried on {device.kind}"


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return what `pick_dtype` takes on a device of torch."""
    import torch

    return getattr(torch, pick_dtype(name, device_of(device))[0])
