"""`helios doctor`: what this machine has, and which models fit on it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli import __version__, machine
from helios_cli.console import JsonFlag, console
from helios_cli.errors import MachineError
from helios_cli.units import at_least, counted, format_bytes, format_seconds
from helios_cli.weights.names import EMBEDDED

if TYPE_CHECKING:
    import torch


def doctor(
    test: Annotated[
        bool, typer.Option("--test", help="Try what this machine computes, and render tiny in each dtype.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show what this machine has, and which models fit on it.

    Exits with 3 if nothing can be rendered here, or if with --test something is
    wrong. Its output with --test is what a bug report needs.
    """
    tested = {"test": _test()} if test else {}
    facts = {**_facts(), **tested}
    console.result(facts)
    for label, texts in _report(facts).items():
        console.prose("\n".join(texts), label=label)
    _show_modes(facts["models"])
    if facts["ffmpeg"]["error"]:
        raise MachineError(facts["ffmpeg"]["error"], hint=facts["ffmpeg"]["hint"])
    if test and (wrong := [one["dtype"] for one in facts["test"] if not one["right"]]):
        raise MachineError(
            f"this machine computes wrongly in {' and '.join(wrong)}",
            hint="report this output; until then, render with a --dtype that is right, or another release of PyTorch",
        )


def _test() -> list[dict]:
    from helios_cli.bench import selftest
    from helios_cli.device import pick_device
    from helios_cli.engine import arithmetic

    return [
        {
            "dtype": one.dtype,
            "right": one.is_right,
            "chunks_db": one.chunks,
            "least_db": one.least,
            "products": arithmetic.facts(one.products),
            "faults": arithmetic.faults(one.products),
        }
        for one in selftest.test(pick_device())
    ]


def _facts() -> dict:
    """Everything the report says, as the JSON object of `--json`."""
    import torch
    from huggingface_hub import constants

    from helios_cli.cost.auto import survey
    from helios_cli.device import device_of, gpus, pick_device, pick_dtype
    from helios_cli.engine.gpu import attention_facts
    from helios_cli.weights.placement import NO_WISH

    device = pick_device()
    described, memory = device_of(device), machine.host_memory()
    dtype, reason = pick_dtype("auto", described)
    folders = {"HELIOS_HOME": machine.home(), "HF_HOME": Path(constants.HF_HUB_CACHE)}
    return {
        "versions": {"helios": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "platform": platform.platform(),
        "cpu": asdict(machine.cpu()),
        "accelerators": [
            {"device": name} | {key: value for key, value in asdict(gpu).items() if key != "kind"}
            for name, gpu in gpus().items()
        ],
        "driver": machine.nvidia_driver(),
        "device": str(device),
        "dtype": {"name": dtype, "reason": reason},
        "memory": {**asdict(memory), "available_bytes": memory.available_bytes},
        "disk": [
            {
                "use": variable,
                "path": str(path),
                "free_bytes": machine.disk_free_bytes(path) if machine.is_writable(path) else None,
            }
            for variable, path in folders.items()
        ],
        "ffmpeg": _ffmpeg(),
        "triton": asdict(machine.triton()),
        "kernels": _kernels(),
        "arithmetic": _arithmetic(device),
        "attention": attention_facts(device),
        "models": survey(described, dtype, NO_WISH),
    }


def _arithmetic(device: torch.device) -> dict:
    """What is known of this device's products, by films of any model and by --test."""
    from helios_cli.engine import arithmetic

    known = arithmetic.known(device)
    told = {"tried": arithmetic.facts(known), "faults": arithmetic.faults(known)}
    return {"device": arithmetic.device_key(device), **told}


def _kernels() -> dict:
    import helios_kernels
    from helios_cli.engine.gpu import recall_kernels

    recall_kernels()
    try:
        backend = helios_kernels.backend()
    except RuntimeError as error:  # HELIOS_KERNELS asks for what cannot be had
        return {"asked": os.environ["HELIOS_KERNELS"], "backend": None, "reason": str(error), "could": None}
    asked = os.environ.get("HELIOS_KERNELS", "auto")
    found = helios_kernels.find_triton()
    return {"asked": asked, "backend": backend.name, "reason": backend.reason, "could": found.reason}


def _ffmpeg() -> dict:
    from helios_cli.film import ffmpeg

    try:
        program = ffmpeg.program()
    except MachineError as error:
        return {"path": None, "version": None, "encoders": [], "error": error.message, "hint": error.hint}
    encoders = list(ffmpeg.available_encoders())
    return {"path": program.path, "version": program.version, "encoders": encoders, "error": None, "hint": None}


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
        "disk": [_disk_line(disk) for disk in facts["disk"]],
        "ffmpeg": _ffmpeg_lines(ffmpeg),
        "Triton": [_triton_line(facts["triton"])],
        "kernels": _kernel_lines(facts["kernels"]),
        "arithmetic": _arithmetic_lines(facts["arithmetic"]),
        "attention": _attention_lines(facts["attention"]),
        **({"test": [line for one in facts["test"] for line in _test_lines(one)]} if "test" in facts else {}),
        "models": [
            f"{EMBEDDED} fits; others on {facts['device']} in {dtype['name']}:",
            _bandwidth_line(facts["models"]["bandwidths"]),
        ],
    }


def _test_lines(tested: dict) -> list[str]:
    chunks = " ".join(f"{psnr:.1f}" for psnr in tested["chunks_db"])
    count = sum(one["cases"] for one in tested["products"] if one["dtype"] == tested["dtype"])
    verdict = "right" if tested["right"] else "WRONG"
    films = f"chunks of tiny at {chunks} dB of golden ones, {tested['least_db']:g} at least"
    return [f"{tested['dtype']}: {verdict}; {counted(count, 'product')} tried; {films}", *tested["faults"]]


def _arithmetic_lines(arithmetic: dict) -> list[str]:
    if not arithmetic["tried"]:
        return ["not tried yet: the first film of a model does that, or `helios doctor --test`"]
    dtypes = dict.fromkeys(one["dtype"] for one in arithmetic["tried"])
    return arithmetic["faults"] or [f"products are right in {', '.join(dtypes)}, where they were tried"]


def _ffmpeg_lines(ffmpeg: dict) -> list[str]:
    if ffmpeg["error"]:
        return [ffmpeg["error"]]
    return [f"{ffmpeg['version']}, {ffmpeg['path']}", f"encodes {', '.join(ffmpeg['encoders']) or 'nothing'}"]


def _disk_line(disk: dict) -> str:
    if disk["free_bytes"] is None:
        return f"nothing can be written for {disk['use']}, {disk['path']}: set it to another folder"
    return f"{format_bytes(disk['free_bytes'])} free for {disk['use']}, {disk['path']}"


def _processor_line(cpu: dict) -> str:
    cores = f"{cpu['cores']} cores, " if cpu["cores"] else ""
    features = ", ".join([*cpu["features"], *cpu["limits"]]) or "no AVX2"
    return f"{cpu['model']}, {cores}{cpu['threads']} threads, {features}"


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


def _kernel_lines(kernels: dict) -> list[str]:
    could = [f"without HELIOS_KERNELS: {kernels['could']}"] if kernels["asked"] == "reference" else []
    return [f"{kernels['backend'] or 'none'}: {kernels['reason']}", *could]


def _attention_lines(attention: dict) -> list[str]:
    lines = [f"auto is {attention['auto']}: {attention['reason']}", f"PyTorch has {', '.join(attention['pytorch'])}"]
    for shape, measured in attention["measured"].items():
        times = ", ".join(f"{name} {ms:.3g} ms" for name, ms in sorted(measured["ms"].items(), key=lambda one: one[1]))
        refused = "".join(f"; {name} refused: {why}" for name, why in measured["refused"].items())
        lines.append(f"{shape}: {measured['name']} ({times}{refused})")
    return lines


def _show_modes(models: dict) -> None:
    """A row a mode: memory at its peak, weights moved and seconds, a chunk; a star at the mode that is taken. Where the
    computing is not known, a chunk takes no less than its weights."""
    rows = []
    for name, model in models["models"].items():
        for mode in model["modes"]:
            sizes = (format_bytes(mode[key]) for key in ("device_bytes", "host_bytes", "moved_bytes"))
            seconds = mode["seconds"]
            time = at_least(mode["transfer_seconds"]) if seconds is None else format_seconds(seconds)
            stay = mode["resident_blocks"] if mode["mode"] == "stream" else "all"
            fits = {True: "yes", False: "no", None: "?"}[mode["fits"]]
            rows.append([name, f"{mode['mode']} *" if mode["chosen"] else mode["mode"], stay, *sizes, time, fits])
    console.line()
    columns = ["model", "offload", "blocks stay", "device", "host", "moved", "a chunk", "fits"]
    console.table(columns, rows, report=True)


def _bandwidth_line(rates: dict) -> str:
    names = {"disk": "the disk", "cache": "the page cache", "upload": "the host's memory to the device"}
    told = [f"{format_bytes(rates[key])}/s from {name}" for key, name in names.items() if rates[key]]
    return f"transfer at {', '.join(told)} ({rates['basis']})"
