"""`helios bench kernels` and `helios bench all`: what this chip reaches, against what it could."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict
from json import loads as read_json
from pathlib import Path
from typing import Annotated, Any

import typer

from helios_cli import machine, options
from helios_cli.bench import report
from helios_cli.bench.report import markdown
from helios_cli.console import JsonFlag, console
from helios_cli.device import pick_device
from helios_cli.errors import HeliosError, InputError, MachineError


def kernels(
    operations: Annotated[
        list[str] | None, typer.Argument(metavar="OPERATION", help="Kernels to compare. (default: all)")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Look for better launch configurations for this GPU, and save them.")
    ] = False,
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Compare each Triton kernel with PyTorch on this GPU, and time those that agree."""
    from helios_cli.engine.gpu import recall_kernels

    os.environ.setdefault("HELIOS_KERNELS", "triton")  # `auto` is off on a chip that has not been tried
    recall_kernels()
    if tune:
        options.write_out(out, _tune(machine.home() / machine.TUNED, operations or ()))
    else:
        _time(tuple(operations or ()), out)


def _time(names: tuple[str, ...], out: Path | None) -> None:
    from helios_kernels import bench

    try:
        bench.require(names)
    except RuntimeError as error:
        raise MachineError(str(error), hint="kernels are timed on a GPU; `helios doctor` shows what is here") from error
    from helios_cli.bench.everything import heading

    ceiling = bench.measure_ceiling()
    timings: list[dict[str, Any]] = []
    here = heading(pick_device("cuda"))
    data = {**report.environment(), **here, "ceiling": asdict(ceiling), "timings": timings}
    for text in (f"{data['device']}, {data['date'][:10]}, {data['versions']['commit']}", ceiling, "", bench.HEADING):
        console.line(str(text))
    wrong = []
    for timing in bench.bench(ceiling, names):
        console.line(str(timing))
        timings.append(asdict(timing))
        options.write_out(out, data)
        wrong += [f"{timing.op} {timing.case}"] if timing.fault else []
    console.result(data)
    if wrong:
        raise HeliosError(f"{len(wrong)} cases differ from PyTorch: {', '.join(wrong)}")


def _tune(file: Path, operations: Collection[str]) -> dict[str, Any]:
    """Tune kernels, and write each better configuration to `file` as it is found."""
    import torch

    from helios_kernels import tuning
    from helios_kernels.timing import gpu_seconds

    rows = []
    try:
        for one in tuning.tune(gpu_seconds, device=torch.device("cuda"), like=tuning.begin(), names=operations):
            console.status(f"{one.kernel}: {one.tried} tried, {one.refused} of them refused")
            tuning.keep(one, file)
            times = [None if time is None else round(time * 1e3, 4) for time in (one.before, one.seconds)]
            rows.append([one.kernel, *times, str(one.best) if one.best else "as before"])
    except RuntimeError as error:
        raise MachineError(str(error), hint="kernels are tuned on a GPU; `helios doctor` shows what is here") from error

    data = {**report.environment(), "device": torch.cuda.get_device_name(), "file": str(file), "kernels": rows}
    console.table(["kernel", "before, ms", "now, ms", "configuration"], rows, data=data)
    console.line(f"kept in {file}, and used from now on")
    return data


def everything(
    device: options.GpuOrCpu = "auto",
    seconds: Annotated[float, typer.Option(min=0, help="Time limit in seconds for the whole run.")] = 480.0,
    json: JsonFlag = False,
    out: Annotated[Path | None, options.file_option("Write the JSON to this file after every part.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="Print this file, written with --out, as Markdown tables, and measure nothing.")
    ] = None,
) -> None:
    """Measure everything on this machine: kernels, attention, fp8, renders and their floors."""
    if table:
        _print_tables(table)
        return

    where = pick_device(device)
    from helios_cli.bench.everything import measure_all, summary
    from helios_cli.engine.gpu import recall_kernels

    recall_kernels()
    rows: list[list[object]] = []
    data: dict[str, Any] = {}
    for name, data in measure_all(where, seconds=seconds):
        if data["note"] and not rows:
            console.notice(data["note"])
        part = data["parts"][name]
        console.status(f"{name}: {summary(part)}")
        rows.append([name, round(part["seconds"], 1), summary(part)])
        options.write_out(out, data)
    console.table(["part", "seconds", ""], rows, data=data)


def _print_tables(file: Path) -> None:

    try:
        lines = list(markdown(read_json(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a result of `helios bench all`: {error}", hint="write one with --out") from error
    for line in lines:
        console.line(line)
