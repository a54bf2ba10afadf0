"""`helios bench kernels` and `helios bench all`: what this chip does, beside what it could."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict
from json import loads as read_json
from pathlib import Path
from typing import Annotated

import typer

from helios_cli import options
from helios_cli.console import JsonFlag, console
from helios_cli.errors import HeliosError, InputError, MachineError


def kernels(
    operations: Annotated[
        list[str] | None, typer.Argument(metavar="OPERATION", help="Kernels to compare. (default: all)")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Look for better launch configurations for this GPU, and keep them.")
    ] = False,
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Compare each Triton kernel with PyTorch on this GPU, then time it; one that differs gets no time."""
    options.require_folder(out)
    from helios_cli import machine
    from helios_cli.device import pick_device
    from helios_cli.engine.gpu import recall_kernels
    from helios_kernels import bench

    names = tuple(operations or ())
    os.environ.setdefault("HELIOS_KERNELS", "triton")  # `auto` is off on a chip that has not been tried
    recall_kernels()
    if tune:
        options.write_out(out, _tune(machine.home() / machine.TUNED, names))
        return
    try:
        bench.require(names)
    except RuntimeError as error:
        raise MachineError(str(error), hint="kernels are timed on a GPU; `helios doctor` shows what is here") from error
    from helios_cli.bench import report
    from helios_cli.bench.everything import heading

    ceiling = bench.measure_ceiling()
    data = {**report.environment(), **heading(pick_device("cuda")), "ceiling": asdict(ceiling), "timings": []}
    for text in (f"{data['device']}, {data['date'][:10]}, {data['versions']['commit']}", str(ceiling), ""):
        console.line(text)
    console.line(bench.HEADING)
    red = []
    for timing in bench.bench(ceiling, names):
        console.line(str(timing))
        data["timings"].append(asdict(timing))
        options.write_out(out, data)
        red += [f"{timing.op} {timing.case}"] if timing.fault else []
    console.result(data)
    if red:
        raise HeliosError(f"{len(red)} cases differ from PyTorch: {', '.join(red)}")


def _tune(file: Path, operations: Collection[str]) -> dict:
    """Tune kernels, and write what is better than what they have to `file` as it is found."""
    import torch

    from helios_kernels import tuning as kernels
    from helios_kernels.timing import gpu_seconds

    rows = []
    try:
        for tuning in kernels.tune(gpu_seconds, device=torch.device("cuda"), like=kernels.begin(), names=operations):
            console.status(f"{tuning.kernel}: {tuning.tried} tried, {tuning.refused} of them refused")
            kernels.keep(tuning, file)
            times = [None if time is None else round(time * 1e3, 4) for time in (tuning.before, tuning.seconds)]
            rows.append([tuning.kernel, *times, str(tuning.best) if tuning.best else "as before"])
    except RuntimeError as error:
        raise MachineError(str(error), hint="kernels are tuned on a GPU; `helios doctor` shows what is here") from error
    from helios_cli.bench import report

    data = {**report.environment(), "device": torch.cuda.get_device_name(), "file": str(file), "kernels": rows}
    console.table(["kernel", "before, ms", "now, ms", "configuration"], rows, data=data)
    console.line(f"kept in {file}, and taken from now on")
    return data


def _print_tables(file: Path) -> None:
    from helios_cli.bench.tables import markdown

    try:
        lines = list(markdown(read_json(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no result of `helios bench all`: {error}", hint="write one with --out") from error
    for line in lines:
        console.line(line)


def everything(
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, cpu.")] = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="After which no part goes on.")] = 480.0,
    json: JsonFlag = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file, after every part.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Print such a file as Markdown tables instead; nothing is measured.")
    ] = None,
) -> None:
    """Measure all there is of this machine: kernels, attention, fp8, renders and their floors."""
    options.require_folder(out)
    if table:
        _print_tables(table)
        return

    from helios_cli.device import pick_device

    where = pick_device(device)
    from helios_cli.bench.everything import results, told
    from helios_cli.engine.gpu import recall_kernels

    recall_kernels()
    rows, data = [], {}
    for name, data in results(where, seconds=seconds):
        if data["note"] and not rows:
            console.notice(data["note"])
        said = data["parts"][name]
        console.status(f"{name}: {told(said)}")
        rows.append([name, round(said["seconds"], 1), told(said)])
        options.write_out(out, data)
    console.table(["part", "seconds", ""], rows, data=data)
