"""`helios bench offload`: every way of placing a model, measured against what its transfers and its computing allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli import options
from helios_cli.console import JsonFlag, console
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.options import read_flag
from helios_cli.units import FRAMES_PER_CHUNK, format_bytes, format_seconds

if TYPE_CHECKING:
    import torch

    from helios_cli.cost.memory import Subject
    from helios_cli.weights.checkpoint import Checkpoint

LEAST_BYTES = 250_000_000
"""Of a transformer whose reading says something about the disk."""

GPU_BUDGETS = "6G,12G,24G"

SIZES = "tiny, 215m, 1.3b, 14b"


def offload(
    model: options.BenchModel = None,
    synthetic: Annotated[
        str | None, typer.Option(help=f"Random weights of a size instead, stored in bfloat16: {SIZES}.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="With --synthetic: where they are written, or were by a run before.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help=f"For stream. (default: {GPU_BUDGETS}; on a CPU, where it is host memory: none, half, all blocks stay)"
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
    """Measure none, model and stream: peak memory and seconds a chunk, against the floor of transfers and computing.

    The bandwidths are kept on this machine: `helios plan` and `doctor` take their times from them.
    """
    options.require_folder(out)
    from helios_cli.bench import report
    from helios_cli.bench.job import plan_of
    from helios_cli.recipe.settings import ModelDefaults
    from helios_cli.weights import hub
    from helios_cli.weights.checkpoint import Checkpoint
    from helios_cli.weights.names import EMBEDDED

    amounts = None if budgets is None else read_flag("--budgets", _amounts, budgets)
    if synthetic or folder:
        found = _written(model, synthetic, folder)
    else:
        found = hub.resolve(model or EMBEDDED, progress=console.progress_bytes)
    checkpoint, name = Checkpoint.open(found), synthetic or model or EMBEDDED
    preset = checkpoint.preset
    plan = plan_of(
        ModelDefaults(checkpoint.native_size, preset.steps, preset.guidance),
        size=options.read_size(size),
        steps=options.read_steps(steps),
        frames=FRAMES_PER_CHUNK * chunks,
        seed=0,
    )
    from helios_cli.device import pick_device, torch_dtype

    where = pick_device(device)
    kind = torch_dtype(dtype, where)
    from helios_cli.bench.offload import measure, placements, subject_of

    subject = subject_of(name, checkpoint, plan, where, kind)
    rates = _bandwidths(checkpoint, where, kind, subject)
    if amounts is None and where.type != "cpu":
        amounts = _amounts(GPU_BUDGETS)
    placed, small = placements(subject, amounts)
    for amount in small:
        console.warning(f"nothing streams in {format_bytes(amount)}")
    told = []
    for mode, said in measure(checkpoint, subject, placed, rates, where):
        if isinstance(said, MachineError):
            console.warning(f"{mode.name}: {said.message}")
        else:
            console.status(f"{mode.name}: {format_seconds(said['seconds'])} a chunk")
            told.append(said)
    peaks = ["device peak", "reserved", "by nvidia-smi", "host peak"]
    columns = ["mode", "budget", "blocks stay", *peaks, "s a chunk", "floor, s", "ratio", ""]
    data = {
        **report.environment(),
        "model": name,
        "size": list(plan.size),
        "steps": list(plan.steps),
        "chunks": chunks,
        "device": subject.device.name,
        "dtype": subject.dtype,
        "bandwidths": rates,
        "modes": told,
    }
    if not told:
        raise MachineError(f"no placement of {name} could be measured", hint="see the warnings above")
    console.table(columns, [_row(said) for said in told], data=data)
    options.write_out(out, data)


def _written(model: str | None, size: str | None, folder: Path | None) -> Path:
    """`folder`, holding a synthetic model of `size`: of the run that wrote it, or written now."""
    from helios_cli.bench.specs import SPECS
    from helios_cli.weights.checkpoint import MODEL_INDEX

    if model or size is None or folder is None:
        raise InputError("--synthetic SIZE and --folder go together, without --model", hint="give both, or neither")
    if size not in SPECS:
        raise InputError(f"{size!r} is no size of a synthetic model", hint=f"write one of {', '.join(SPECS)}")
    if (folder / MODEL_INDEX).exists():
        return folder
    import torch

    from helios_cli.bench.synthetic import write_checkpoint

    console.status(f"writing random weights of size {size} to {folder}")
    return write_checkpoint(folder, SPECS[size], dtype=torch.bfloat16)


def _bandwidths(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, subject: Subject) -> dict:
    from helios_cli.bench.bandwidth import bandwidths
    from helios_cli.cost.speeds import record_bandwidths, speeds_file

    console.status("reading weights from the disk and out of the page cache")
    rates = bandwidths(checkpoint, device, dtype)
    if checkpoint.component("transformer").bytes < LEAST_BYTES:
        console.notice(f"the bandwidths are not kept: {subject.model.name} is too small to tell them of larger models")
        return rates
    try:
        record_bandwidths(subject.device.name, rates)
    except OSError as error:
        console.warning(f"the bandwidths could not be kept in {speeds_file()}: {error}")
    return rates


def _amounts(text: str) -> list[int]:
    from helios_cli.recipe.values import parse_bytes

    return [parse_bytes(part) for part in text.split(",")]


def _row(told: dict) -> list:
    def amount(key: str) -> str:
        return "" if told[key] is None else format_bytes(told[key])

    return [
        told["mode"] + (" in turns" if told["turns"] and told["mode"] == "stream" else ""),
        amount("budget_bytes"),
        "all" if told["resident_blocks"] is None else told["resident_blocks"],
        amount("peak_device_bytes"),
        amount("peak_reserved_bytes"),
        amount("peak_driver_bytes"),
        amount("peak_host_bytes"),
        round(told["seconds"], 3),
        round(told["floor_seconds"], 3),
        "" if told["ratio"] is None else round(told["ratio"], 2),
        "over its budget" if told["over_budget"] else "",
    ]
