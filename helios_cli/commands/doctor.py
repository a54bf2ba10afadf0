"""`helios doctor`: what this machine has, and which models fit on it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from helios_cli import __version__, doctor_view, machine
from helios_cli.architecture import DiTConfig
from helios_cli.console import JsonFlag, console
from helios_cli.cost.auto import survey
from helios_cli.cost.team import divisions
from helios_cli.device import Device, device_of, gpus, pick_device, pick_dtype
from helios_cli.doctor_view import Facts
from helios_cli.errors import MachineError
from helios_cli.film import ffmpeg


def doctor(
    test: Annotated[
        bool, typer.Option("--test", help="Also test the arithmetic of this machine and render tiny in each dtype.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show what this machine has, and which models fit on it.

    Exits with 3 if nothing can be rendered here, or if a test of --test fails.
    Add the output of --test to a bug report.
    """
    facts = {**_facts(), **({"test": _test()} if test else {})}
    console.result(facts)
    doctor_view.show(facts)
    if facts["ffmpeg"]["error"]:
        raise MachineError(facts["ffmpeg"]["error"], hint=facts["ffmpeg"]["hint"])
    if wrong := [result["dtype"] for result in facts.get("test", ()) if not result["right"]]:
        raise MachineError(
            f"this machine computes wrong results in {' and '.join(wrong)}",
            hint="report this output; until then, render with a --dtype that is right, or another release of PyTorch",
        )


def _test() -> list[Facts]:
    from helios_cli.bench import selftest
    from helios_cli.engine import arithmetic

    return [
        {
            "dtype": result.dtype,
            "right": result.is_right,
            "chunks_db": result.chunks,
            "least_db": result.least,
            "products": arithmetic.facts(result.products),
            "faults": arithmetic.faults(result.products),
        }
        for result in selftest.test(pick_device())
    ]


def _facts() -> Facts:
    """Collect the report as the JSON object of `--json`."""
    import torch
    from huggingface_hub import constants

    from helios_cli.engine import arithmetic
    from helios_cli.engine.choices import attention_facts

    device = pick_device()
    described, memory = device_of(device), machine.host_memory()
    dtype, reason = pick_dtype("auto", described)
    folders = {"HELIOS_HOME": machine.home(), "HF_HOME": Path(constants.HF_HUB_CACHE)}
    products = arithmetic.known(device)
    return {
        "versions": {"helios": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "platform": platform.platform(),
        "cpu": machine.cpu()._asdict(),
        "accelerators": [_accelerator(name, gpu) for name, gpu in gpus().items()],
        "driver": machine.nvidia_driver(),
        "links": [{"gpus": list(pair), "link": link} for pair, link in machine.gpu_links().items()],
        "device": str(device),
        "dtype": {"name": dtype, "reason": reason},
        "memory": {**asdict(memory), "available_bytes": memory.available_bytes},
        "disk": [_disk(variable, path) for variable, path in folders.items()],
        "ffmpeg": _ffmpeg(),
        "triton": _triton(torch.cuda.is_available()),
        "kernels": _kernels(),
        "arithmetic": {
            "device": arithmetic.device_key(device),
            "tried": arithmetic.facts(products),
            "faults": arithmetic.faults(products),
        },
        "attention": attention_facts(device),
        "farm": _farm(torch.cuda.device_count()),
        "models": survey(described, dtype),
    }


def _farm(gpu_count: int) -> Facts:
    """Return what `--workers auto`, `--gpus-per-film` (of the published models) and `--cluster` find here."""

    choices = divisions(DiTConfig().num_attention_heads, guided=False)
    return {
        "workers_auto": max(1, gpu_count),
        "gpus_per_film": [1, *(count for count in choices if count <= gpu_count)],
        "ray": {"version": machine.package_version("ray"), "address": os.environ.get("RAY_ADDRESS") or None},
    }


def _accelerator(name: str, gpu: Device) -> Facts:
    return {"device": name} | {key: value for key, value in asdict(gpu).items() if key != "kind"}


def _disk(variable: str, path: Path) -> Facts:
    free = machine.disk_free_bytes(path) if machine.is_writable(path) else None
    return {"use": variable, "path": str(path), "free_bytes": free}


def _triton(has_gpu: bool) -> Facts:
    version = machine.package_version("triton")
    if version is None:
        return {"version": None, "runs": False, "reason": "not installed"}
    if os.environ.get("TRITON_INTERPRET") == "1":
        return {"version": version, "runs": True, "reason": "TRITON_INTERPRET=1: interpreted on the CPU, for tests"}
    return {"version": version, "runs": has_gpu, "reason": "a GPU is there" if has_gpu else "needs a GPU"}


def _kernels() -> Facts:
    import helios_kernels
    from helios_cli.engine.gpu import recall_kernels

    recall_kernels()
    asked = os.environ.get("HELIOS_KERNELS", "auto")
    try:
        backend = helios_kernels.backend()
    except RuntimeError as error:  # HELIOS_KERNELS requires what this machine does not have
        return {"asked": asked, "backend": None, "reason": str(error), "could": None}
    could = helios_kernels.find_triton().reason
    return {"asked": asked, "backend": backend.name, "reason": backend.reason, "could": could}


def _ffmpeg() -> Facts:

    try:
        program = ffmpeg.program()
    except MachineError as error:
        return {"path": None, "version": None, "encoders": [], "error": error.message, "hint": error.hint}
    encoders = list(ffmpeg.available_encoders())
    return {"path": program.path, "version": program.version, "encoders": encoders, "error": None, "hint": None}
