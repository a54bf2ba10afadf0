"""`helios bench offload`: every way of placing a model, measured against what its transfers and its computing allow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli import options
from helios_cli.console import JsonFlag, console
from helios_cli.errors import InputError, MachineError
from helios_cli.units import FRAMES_PER_CHUNK, format_bytes

if TYPE_CHECKING:
    import torch

    from helios_cli.bench.job import Result
    from helios_cli.cost.memory import Budget, MemoryMode, Subject
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
    from helios_cli.bench.driver import DriverWatch
    from helios_cli.bench.job import plan_of
    from helios_cli.recipe.settings import ModelDefaults
    from helios_cli.weights import hub
    from helios_cli.weights.checkpoint import Checkpoint
    from helios_cli.weights.names import EMBEDDED

    amounts = options.read("--budgets", _amounts, budgets)
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
    from helios_cli import machine

    where = machine.pick_device(device)
    kind, _ = machine.pick_dtype(dtype, where)
    subject = _subject(name, checkpoint, plan, where, kind)
    rates = _bandwidths(checkpoint, where, kind, subject)
    computing, rows, told = None, [], []
    for mode, budget in _placements(subject, amounts):
        console.status(f"{mode.name}, {format_bytes(mode.device_bytes)} planned")
        with DriverWatch(str(where)) as watch:
            result = _measure(checkpoint, subject, mode, budget, str(where))
        if isinstance(result, MachineError):
            console.warning(f"{mode.name}: {result.message}")
            continue
        seconds = (result.seconds - result.phases["text"]) / chunks
        if mode.name == "none":
            computing = seconds
        told.append(_told(mode, budget, result, watch.peak_bytes, seconds, computing, rates))
        rows.append(_row(told[-1]))
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
    console.table(columns, rows, data=data)
    options.write_out(out, data)


def _written(model: str | None, size: str | None, folder: Path | None) -> Path:
    """`folder`, holding a synthetic model of `size`: of the run that wrote it, or written now."""
    from helios_cli.weights.checkpoint import MODEL_INDEX
    from helios_cli.weights.specs import SPECS

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


def _subject(name: str, checkpoint: Checkpoint, plan, device: torch.device, dtype: torch.dtype) -> Subject:
    from helios_cli.cost.device import find_device, for_model
    from helios_cli.cost.memory import Subject
    from helios_cli.cost.model import opened
    from helios_cli.cost.tokens import count_tokens
    from helios_cli.cost.work import texts_of, work_of
    from helios_cli.weights.hub import Source

    model = opened(name, Source(folder=checkpoint.path), checkpoint)
    prompts, kind = count_tokens(model, texts_of(plan)), str(dtype).removeprefix("torch.")
    seen = for_model(find_device(str(device)), model.parameters["transformer"])
    return Subject(plan, model, work_of(plan, model, prompts, kind), prompts, seen, kind)


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


def _placements(subject: Subject, amounts: list[int] | None) -> list[tuple[MemoryMode, int | None]]:
    """The modes to measure, and the budget that each was placed in: first without one, then in each that it fits."""
    from helios_cli.cost.memory import Budget, memory_modes, mode_of
    from helios_cli.weights.placement import Placement

    free = Budget(None, None)
    found = [(mode_of(subject, free, Placement(mode)), None) for mode in ("none", "model")]
    if subject.device.kind == "cpu" and amounts is None:
        layers = subject.model.dit.num_layers
        kept = sorted({0, layers // 2, layers})
        return [*found, *((mode_of(subject, free, Placement("stream", count)), None) for count in kept)]
    for amount in amounts or _amounts(GPU_BUDGETS):
        budget: Budget = Budget(None, amount) if subject.device.kind == "cpu" else Budget(amount, None)
        streams = [mode for mode in memory_modes(subject, budget) if mode.name == "stream"]
        if streams and streams[0].fits:
            found.append((streams[0], amount))
        else:
            console.warning(f"nothing streams in {format_bytes(amount)}")
    return found


def _measure(
    checkpoint: Checkpoint, subject: Subject, mode: MemoryMode, budget: int | None, device: str
) -> Result | MachineError:
    """A film in a process of its own, held to its budget on a GPU; the error where memory was too small."""
    from helios_cli.bench.job import Job, run

    plan, placement = subject.plan, mode.placement
    with tempfile.TemporaryDirectory(prefix="helios-") as work:
        job = Job(
            folder=str(checkpoint.path),
            synthetic=None,
            size=plan.size,
            num_frames=plan.num_frames,
            steps=plan.steps,
            dtype=subject.dtype,
            device=device,
            threads=0,
            film=f"{work}/film.mkv",
            placement=(placement.mode, placement.resident, placement.turns, placement.cached_bytes),
            vram=budget,
        )
        try:
            return run("ours", job)
        except MachineError as error:
            return error


def _told(
    mode: MemoryMode,
    budget: int | None,
    result: Result,
    driver: int | None,
    seconds: float,
    computing: float | None,
    rates: dict,
) -> dict:
    """`floor_seconds`: the larger of what the transfers take at the measured bandwidths, the files being in the page
    cache, and what a chunk takes with nothing offloaded. `driver`: the peak in bytes as nvidia-smi says it."""
    # The budget is of what computes: a GPU's memory by the widest of the three counts, or the host's.
    device_peaks = [peak for peak in (result.peak_device_bytes, result.peak_reserved_bytes, driver) if peak is not None]
    peak = max(device_peaks, default=result.peak_host_bytes)
    reading = mode.read_bytes / rates["cache"] if mode.name != "none" else 0.0
    upload = mode.moved_bytes / rates["upload"] if "upload" in rates else 0.0
    floor = max(reading, upload, computing or 0.0)
    return {
        "mode": mode.name,
        "budget_bytes": budget,
        "resident_blocks": mode.placement.resident if mode.name == "stream" else None,
        "turns": mode.placement.takes_turns,
        "planned_device_bytes": mode.device_bytes,
        "planned_host_bytes": mode.host_bytes,
        "peak_device_bytes": result.peak_device_bytes,
        "peak_reserved_bytes": result.peak_reserved_bytes,
        "peak_driver_bytes": driver,
        "peak_host_bytes": result.peak_host_bytes,
        "over_budget": budget is not None and peak > budget,
        "moved_bytes": mode.moved_bytes,
        "seconds": seconds,
        "floor_seconds": floor,
        "ratio": seconds / floor if floor else None,
    }


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
