"""`helios doctor`: what this machine has, and which models fit on it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli import __version__, machine
from helios_cli.console import JsonFlag, console
from helios_cli.errors import MachineError
from helios_cli.units import format_bytes
from helios_cli.weights.names import EMBEDDED, KNOWN

if TYPE_CHECKING:
    import torch

FLOAT32_BYTES = {"transformer": 57.25e9, "text_encoder": 22.72e9, "vae": 0.51e9}
"""Weights of each published model, as stored. All three models have the same shapes."""

WORKING_BYTES = 3e9
"""Activations of the 14B transformer at 384x640, from the sizes of its tensors."""


def doctor(json: JsonFlag = False) -> None:
    """Show what this machine has, and which models fit on it.

    Exits with 3 if nothing can be rendered here.
    """
    facts = _facts()
    console.result(facts)
    for label, texts in _report(facts).items():
        for index, text in enumerate(texts):
            console.line(f"{label if index == 0 else '':<10}  {text}")
    if facts["ffmpeg"]["error"]:
        raise MachineError(facts["ffmpeg"]["error"], hint=facts["ffmpeg"]["hint"])


def _facts() -> dict:
    """Everything the report says, as the JSON object of `--json`."""
    import torch
    from huggingface_hub import constants

    device = machine.pick_device("auto")
    dtype, reason = machine.pick_dtype("auto", device)
    memory = machine.host_memory()
    accelerators = machine.accelerators()
    folders = {"HELIOS_HOME": machine.home(), "hub cache": Path(constants.HF_HUB_CACHE)}
    return {
        "versions": {"helios": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "platform": platform.platform(),
        "cpu": asdict(machine.cpu()),
        "accelerators": [asdict(accelerator) for accelerator in accelerators],
        "driver": machine.nvidia_driver(),
        "device": str(device),
        "dtype": {"name": str(dtype).removeprefix("torch."), "reason": reason},
        "memory": {**asdict(memory), "available_bytes": memory.available_bytes},
        "disk": [
            {"use": use, "path": str(path), "free_bytes": machine.disk_free_bytes(path)}
            for use, path in folders.items()
        ],
        "ffmpeg": _ffmpeg(),
        "triton": asdict(machine.triton()),
        "kernels": _kernels(),
        "attention": list(machine.attention_backends(device)),
        "models": _models(device, dtype),
    }


def _kernels() -> dict:
    import helios_kernels

    try:
        backend = helios_kernels.backend()
    except RuntimeError as error:  # HELIOS_KERNELS asks for what cannot be had
        return {"backend": None, "reason": str(error)}
    return {"backend": backend.name, "reason": backend.reason}


def _ffmpeg() -> dict:
    from helios_cli.engine import ffmpeg

    try:
        program = ffmpeg.program()
    except MachineError as error:
        return {"path": None, "version": None, "error": error.message, "hint": error.hint}
    return {"path": program.path, "version": program.version, "error": None, "hint": None}


def _models(device: torch.device, dtype: torch.dtype) -> dict:
    """Whether the models' weights fit on `device` in `dtype` while nothing is offloaded."""
    free = machine.free_bytes(device)
    sizes = {name: int(size * dtype.itemsize / 4) for name, size in FLOAT32_BYTES.items()}
    needed = max(sizes["text_encoder"], sizes["transformer"] + sizes["vae"]) + int(WORKING_BYTES)
    return {
        "weight_bytes": sizes,
        "needed_bytes": needed,
        "free_bytes": free,
        "fits": {EMBEDDED: True, **{name: needed <= free for name in KNOWN}},
    }


def _report(facts: dict) -> dict[str, list[str]]:
    """The report's lines under their labels."""
    versions = facts["versions"]
    dtype, ffmpeg = facts["dtype"], facts["ffmpeg"]
    return {
        "helios": [
            f"{versions['helios']}, Python {versions['python']}, PyTorch {versions['torch']}",
            facts["platform"],
        ],
        "processor": [_processor_line(facts["cpu"])],
        "GPU": _gpu_lines(facts),
        "dtype": [f"{dtype['name']} on {facts['device']}: {dtype['reason']}"],
        "memory": _memory_lines(facts["memory"]),
        "disk": [
            f"{format_bytes(disk['free_bytes'])} free for {disk['use']}, {disk['path']}" for disk in facts["disk"]
        ],
        "ffmpeg": [ffmpeg["error"] or f"{ffmpeg['version']}, {ffmpeg['path']}"],
        "Triton": [_triton_line(facts["triton"])],
        "kernels": [f"{facts['kernels']['backend'] or 'none'}: {facts['kernels']['reason']}"],
        "attention": [f"PyTorch: {', '.join(facts['attention'])}"],
        "models": _model_lines(facts["models"], facts["device"], dtype["name"]),
    }


def _processor_line(cpu: dict) -> str:
    cores = f"{cpu['cores']} cores, " if cpu["cores"] else ""
    return f"{cpu['model']}, {cores}{cpu['threads']} threads, {', '.join(cpu['features']) or 'no AVX2'}"


def _gpu_lines(facts: dict) -> list[str]:
    lines = []
    for gpu in facts["accelerators"]:
        capability = "capability {}.{}, ".format(*gpu["capability"]) if gpu["capability"] else ""
        total, free = format_bytes(gpu["total_bytes"]), format_bytes(gpu["free_bytes"])
        lines.append(f"{gpu['device']}: {gpu['name']}, {capability}{total}, {free} free")
    if facts["driver"]:
        unused = "" if lines else ", but this PyTorch cannot use it: install a build with CUDA from pytorch.org"
        lines.append(f"NVIDIA driver {facts['driver']}{unused}")
    return lines or ["none"]


def _memory_lines(memory: dict) -> list[str]:
    lines = [f"{format_bytes(memory['available_bytes'])} of {format_bytes(memory['total_bytes'])} available"]
    for limit in memory["limits"]:
        used, most = format_bytes(limit["used_bytes"]), format_bytes(limit["limit_bytes"])
        lines.append(f"container limit {most}, {used} used without the page cache, {limit['path']}")
    return lines


def _triton_line(triton: dict) -> str:
    if triton["version"] is None:
        return triton["reason"]
    return f"{triton['version']}, {'runs' if triton['runs'] else 'cannot run'}: {triton['reason']}"


def _model_lines(models: dict, device: str, dtype: str) -> list[str]:
    needed, free = format_bytes(models["needed_bytes"]), format_bytes(models["free_bytes"])
    sizes = {name: format_bytes(size) for name, size in models["weight_bytes"].items()}
    lines = [f"on {device} in {dtype}, with nothing offloaded:"]
    for name, fits in models["fits"].items():
        need = (
            "" if name == EMBEDDED else f", needs {needed} of {free} free" if fits else f": needs {needed}, {free} free"
        )
        lines.append(f"{name} {'fits' if fits else 'does not fit'}{need}")
    return [
        *lines,
        f"(transformer {sizes['transformer']}, VAE {sizes['vae']}, {format_bytes(WORKING_BYTES)} to work in;",
        f"text encoder {sizes['text_encoder']}, freed once the prompts are read)",
    ]
