"""`helios bench offload`: every way of placing a model, against the floor of its transfers and its computing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helios_cli import options
from helios_cli.bench import report
from helios_cli.bench.specs import SIZES, spec_of
from helios_cli.bench.task import plan_of
from helios_cli.console import JsonFlag, console
from helios_cli.cost.speeds import record_bandwidths, speeds_file
from helios_cli.device import pick_device, torch_dtype
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.flags import read_flag
from helios_cli.recipe.values import parse_bytes
from helios_cli.units import FRAMES_PER_CHUNK, format_bytes, format_seconds
from helios_cli.weights.checkpoint import MODEL_INDEX, Checkpoint

if TYPE_CHECKING:
    import torch

    from helios_cli.cost.workload import Workload

LEAST_BYTES = 250_000_000
"""Bytes of the smallest transformer whose reading tells anything about the disk."""

GPU_BUDGETS = "6G,12G,24G"


def offload(
    model: options.BenchModel = None,
    synthetic: Annotated[
        str | None, typer.Option(help=f"Use random weights of this size instead, stored in bfloat16: {SIZES}.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for the --synthetic model, which is reused if an earlier run wrote it.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help=f"Budgets for stream. (default: {GPU_BUDGETS}; on a CPU, host memory: none, half, all blocks stay)"
        ),
    ] = None,
    size: options.BenchSize = None,
    chunks: options.BenchChunks = 2,
    steps: options.BenchSteps = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Measure peak memory and seconds per chunk of none, model and stream, next to the floor of transfers and compute.

    The bandwidths are saved on this machine; `helios plan` and `doctor` estimate times from them.
    """

    amounts = None if budgets is None else read_flag("--budgets", _amounts, budgets)
    if synthetic or folder:
        name, checkpoint = synthetic or "", _synthetic(model, synthetic, folder)
    else:
        name, checkpoint = options.open_model(model, console.progress_bytes)
    plan = plan_of(checkpoint.defaults, size=size, steps=steps, frames=FRAMES_PER_CHUNK * chunks, seed=0)
    where = pick_device(device)
    kind = torch_dtype(dtype, where)
    from helios_cli.bench.offload import workload_of

    load = workload_of(name, checkpoint, plan, where, kind)
    rates = _bandwidths(checkpoint, where, kind, load)
    rows = _measure(checkpoint, load, rates, where, amounts)
    data = {
        **report.environment(),
        "model": name,
        "size": list(plan.size),
        "steps": list(plan.steps),
        "chunks": chunks,
        "device": load.device.name,
        "dtype": load.dtype,
        "bandwidths": rates,
        "modes": rows,
    }
    peaks = ["device peak", "reserved", "by nvidia-smi", "host peak"]
    columns = ["mode", "budget", "blocks stay", *peaks, "s a chunk", "floor, s", "ratio", ""]
    console.table(columns, [_cells(row) for row in rows], data=data)
    options.write_out(out, data)


def _synthetic(model: str | None, size: str | None, folder: Path | None) -> Checkpoint:
    """Return the synthetic model of `size` in `folder`, which an earlier run wrote or which is written now."""

    if model or size is None or folder is None:
        raise InputError("--synthetic SIZE and --folder go together, without --model", hint="give both, or neither")
    spec = spec_of(size)
    if not (folder / MODEL_INDEX).exists():
        import torch

        from helios_cli.bench.synthetic import write_checkpoint

        console.status(f"writing random weights of size {size} to {folder}")
        write_checkpoint(folder, spec, dtype=torch.bfloat16)
    return Checkpoint.open(folder)


def _bandwidths(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, load: Workload) -> dict[str, float]:
    from helios_cli.bench.offload import bandwidths

    console.status("reading weights from the disk and from the page cache")
    rates = bandwidths(checkpoint, device, dtype)
    if checkpoint.component("transformer").bytes < LEAST_BYTES:
        console.notice(
            f"the bandwidths are not saved: {load.model.name} is too small to say anything about larger models"
        )
        return rates
    try:
        record_bandwidths(load.device.name, rates)
    except OSError as error:
        console.warning(f"the bandwidths could not be saved in {speeds_file()}: {error}")
    return rates


def _measure(
    checkpoint: Checkpoint, load: Workload, rates: dict[str, float], device: torch.device, amounts: list[int] | None
) -> list[dict[str, Any]]:
    """Measure every mode; return the rows of those that could be. MachineError if there are none."""
    from helios_cli.bench.offload import measure_modes, placements

    if amounts is None and device.type != "cpu":
        amounts = _amounts(GPU_BUDGETS)
    placed, small = placements(load, amounts)
    for amount in small:
        console.warning(f"{format_bytes(amount)} is too little to stream in")
    rows = []
    for mode, row in measure_modes(checkpoint, load, placed, rates, device):
        if isinstance(row, MachineError):
            console.warning(f"{mode.name}: {row.message}")
        else:
            console.status(f"{mode.name}: {format_seconds(row['seconds'])} a chunk")
            rows.append(row)
    if not rows:
        raise MachineError(f"no placement of {load.model.name} could be measured", hint="see the warnings above")
    return rows


def _amounts(text: str) -> list[int]:

    return [parse_bytes(part) for part in text.split(",")]


def _cells(row: dict[str, Any]) -> list[Any]:
    amounts = ("budget", "peak_device", "peak_reserved", "peak_driver", "peak_host")
    budget, *peaks = ["" if (size := row[f"{key}_bytes"]) is None else format_bytes(size) for key in amounts]
    return [
        row["mode"] + (" in turns" if row["turns"] and row["mode"] == "stream" else ""),
        budget,
        "all" if row["resident_blocks"] is None else row["resident_blocks"],
        *peaks,
        round(row["seconds"], 3),
        round(row["floor_seconds"], 3),
        "" if row["ratio"] is None else round(row["ratio"], 2),
        "over its budget" if row["over_budget"] else "",
    ]
