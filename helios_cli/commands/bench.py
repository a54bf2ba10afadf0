"""`helios bench`: how fast this machine renders, side by side with the reference, and in how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from helios_cli import machine, options
from helios_cli.bench import report
from helios_cli.bench.specs import SIZES, SPECS, spec_of
from helios_cli.bench.task import Result, Task, against_floors, ceiling, counted_work, plan_of, run, synthetic_defaults
from helios_cli.console import JsonFlag, console
from helios_cli.cost.speeds import MeasuredSpeed, measured_dtype, record_speed, speeds_file
from helios_cli.device import cpu_name, find_device, pick_device
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.plan import Plan
from helios_cli.recipe.settings import ModelDefaults
from helios_cli.stop import stop_at_once
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK, counted
from helios_cli.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from helios_cli.weights.fp8 import Quant

app = typer.Typer(help="Measure speed and memory.", no_args_is_help=True)

REFERENCE = ("diffusers", "transformers", "accelerate")

Synthetic = Annotated[str | None, typer.Option(help=f"Use random weights of this size instead: {SIZES}.")]


@app.command()
def render(
    model: options.BenchModel = None,
    synthetic: Synthetic = None,
    against: Annotated[
        Literal["diffusers"] | None, typer.Option(help="Program to measure as well, for comparison.")
    ] = None,
    size: options.BenchSize = None,
    chunks: options.BenchChunks = 2,
    steps: options.BenchSteps = None,
    dtype: Annotated[
        Literal["default", "bfloat16", "float32"],
        typer.Option(help="Data type to compute in; default is each side's own, float32 for diffusers."),
    ] = "default",
    device: options.BenchDevice = "auto",
    quant: options.Quant = "none",
    attention: options.Attention = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads per side. (default: PyTorch's)")] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Compare the peak memory of a short and a long film instead.")
    ] = False,
    minutes: Annotated[str, typer.Option(help="Lengths of the two films of --memory.")] = "1,10",
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Time a render and its phases after a warm-up, each side in its own process.

    The speed of helios is saved on this machine; `helios plan` estimates times from it.
    """

    if against and memory:
        raise InputError("--memory measures helios alone", hint="leave out --against")
    lengths = _lengths(minutes)
    _require(against)
    subject = _subject(model, synthetic)
    plan = subject.plan(size, steps, chunks)
    with subject.at_hand() as (folder, work):
        model_of = {"folder": folder, "synthetic": None if folder else subject.name}
        how = {"threads": threads or 0, "film": f"{work}/helios.mp4", "quant": quant, "attention": attention}
        task = Task.for_plan(plan, dtype, device, **model_of, **how)
        report = _memory(subject.name, task, lengths) if memory else _speed(subject.name, task, against)
    options.write_out(out, report)


@app.command()
def quant(
    model: options.BenchModel = None,
    synthetic: Synthetic = None,
    size: options.BenchSize = None,
    chunks: options.BenchChunks = 2,
    steps: options.BenchSteps = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Also compare bfloat16 with float32, to show the effect of rounding.")
    ] = False,
    reuse_history: Annotated[
        bool, typer.Option("--reuse-history", help="Measure --reuse-history as well, in the type it is compared with.")
    ] = False,
    reuse_steps: Annotated[
        int, typer.Option(metavar="N", help="Measure --reuse-steps as well, in the type it is compared with.")
    ] = 1,
    guidance: Annotated[float, typer.Option(min=0, max=100, help="Guidance scale.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the film.")] = 0,
    device: options.GpuOrCpu = "auto",
    json: JsonFlag = False,
    out: options.BenchOut = None,
) -> None:
    """Measure the effect of --quant fp8 on a film: PSNR of latents and frames against bfloat16, chunk by chunk."""
    from helios_cli.bench.fidelity import distances

    subject = _subject(model, synthetic)
    plan = subject.plan(size, steps, chunks, guidance=guidance, seed=seed)
    where, films = pick_device(device), {}
    exact = "float32" if float32 else "bfloat16"
    others = {"reuse": replace(plan, reuse_history=True)} if reuse_history else {}
    if reuse_steps > 1:
        others["steps"] = subject.plan(size, steps, chunks, guidance=guidance, seed=seed, reuse_steps=reuse_steps)
    for name in (*(["float32"] if float32 else []), "bfloat16", *IN_8_BITS, *others):
        console.status(f"{name}: {plan.num_frames} frames of {plan.size[0]}x{plan.size[1]} with {subject.name}")
        films[name] = _film_of(subject, where, exact if name in others else name, others.get(name, plan))
    pairs = [(name, "bfloat16") for name in IN_8_BITS]
    pairs += [(name, "float32") for name in ("bfloat16", *IN_8_BITS)] if float32 else []
    pairs += [(name, exact) for name in others]
    rows = [
        [ours, other, distance.chunk + 1, round(distance.latents_db, 1), round(distance.frames_db, 1)]
        for ours, other in pairs
        for distance in distances(films[ours], films[other])
    ]
    keys = ("film", "against", "chunk", "latents_db", "frames_db")
    data = {
        **report.environment(),
        "model": subject.name,
        "device": str(where),
        "size": list(plan.size),
        "steps": list(plan.steps),
        "guidance": guidance,
        "distances": [dict(zip(keys, row, strict=True)) for row in rows],
    }
    console.table(["film", "against", "chunk", "latents, dB", "frames, dB"], rows, data=data)
    options.write_out(out, data)


IN_8_BITS: dict[str, tuple[Quant, str | None]] = {
    "fp8": ("fp8", None),
    "fp8, int8 attention": ("fp8+attention", "int8"),
    "fp8, e4m3 attention": ("fp8+attention", "e4m3"),
}
"""The ways to compute that are compared, by name: --quant, and the kind of attention in 8 bits."""


def _film_of(subject: _Subject, device: torch.device, name: str, plan: Plan) -> list[tuple[Tensor, Tensor]]:
    """Render the plan in the arithmetic `name`, of IN_8_BITS or a dtype; return latents and frames by chunk."""
    import torch

    from helios_cli.bench.fidelity import film
    from helios_cli.bench.synthetic import RandomModels
    from helios_cli.engine.models import Models

    quant, kind = IN_8_BITS.get(name, ("none", None))
    dtype = torch.bfloat16 if quant != "none" else getattr(torch, name)
    if subject.folder:
        models = Models(Checkpoint.open(subject.folder), device, dtype, quant=quant)
    else:
        models = RandomModels(SPECS[subject.name], device, dtype, name=subject.name, quant=quant)
    if kind:
        assert models.choices.in_8_bits is not None, "only with --quant fp8+attention"
        models.choices.in_8_bits.only = kind
    try:
        return film(models, plan)
    finally:
        models.unload()


@app.command()
def checkpoint(
    size: Annotated[str, typer.Argument(help=f"Size of the model: {SIZES}.")],
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    kind: Annotated[
        Literal["base", "mid", "distilled"], typer.Option(help="Kind of checkpoint, which decides how it is sampled.")
    ] = "distilled",
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type to store.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Write a checkpoint with random weights in the published layout, for tests and measurements."""

    spec = spec_of(size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder", hint="name a new folder")

    import torch

    from helios_cli.bench.synthetic import write_checkpoint

    write_checkpoint(folder, spec, dtype=getattr(torch, dtype), seed=seed, kind=kind)
    console.line(str(folder))


@app.command("train")
def train_memory(
    size: Annotated[str, typer.Option(help=f"Size of the model, with random weights: {SIZES}.")] = "tiny",
    batch: Annotated[int, typer.Option(min=1, help="Samples per step.")] = 4,
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], typer.Option(help="Data type to compute in.")] = "auto",
    device: options.GpuOrCpu = "auto",
    json: JsonFlag = False,
) -> None:
    """Compare the peak memory of a distillation step with each memory option on and off."""
    spec_of(size)

    from helios_cli.train.bench import compare
    from helios_cli.train.loop import dtype_name

    where = pick_device(device)
    computed_in = dtype_name(dtype, where)
    ways, rows = [], []
    with stop_at_once():  # so that no measurement goes on after its user has left
        for held in compare(size, batch, where, computed_in):
            console.status(f"measured with {held.way}")
            ways.append({**asdict(held), "peak_bytes": held.peak_bytes})
            sizes = (held.peak_bytes, held.critic_bytes, held.student_bytes, held.between_bytes)
            rows.append([held.way, *(round(size / 1e6) for size in sizes), round(held.seconds, 2)])
    data = {**report.environment(), "size": size, "batch": batch, "dtype": computed_in, "ways": ways}
    console.table(["on", "peak, MB", "critic's turn", "student's turn", "between", "seconds"], rows, data=data)


@dataclass(frozen=True)
class _Subject:
    """The model under measurement. Without `folder` it is the synthetic size called `name`."""

    name: str
    folder: Path | None
    defaults: ModelDefaults

    def plan(self, size: str | None, steps: str | None, chunks: int, **flags: Any) -> Plan:

        return plan_of(self.defaults, size=size, steps=steps, frames=FRAMES_PER_CHUNK * chunks, **flags)

    @contextmanager
    def at_hand(self) -> Iterator[tuple[str | None, str]]:
        """Yield the model's folder, None for one that is made on the device, and a folder for films."""

        with machine.temporary_folder() as work:
            folder = self.folder
            if folder is None and not SPECS[self.name].resident:
                from helios_cli.bench.synthetic import write_checkpoint

                console.status(f"writing random weights of size {self.name}")
                folder = write_checkpoint(Path(work, "model"), SPECS[self.name])
            yield str(folder) if folder else None, work


def _subject(model: str | None, synthetic: str | None) -> _Subject:

    if model and synthetic:
        raise InputError("--model and --synthetic both name a model", hint="keep one of them")
    if synthetic:
        spec_of(synthetic)
        return _Subject(synthetic, None, synthetic_defaults(synthetic))
    name, checkpoint = options.open_model(model, console.progress_bytes)
    return _Subject(name, checkpoint.path, checkpoint.defaults)


def _require(against: str | None) -> None:
    missing = [package for package in REFERENCE if against and find_spec(package) is None]
    if missing:
        raise MachineError(
            f"--against {against}: {', '.join(missing)} not installed", hint='pip install "helios-render[dev]"'
        )


def _lengths(minutes: str) -> tuple[float, float]:
    try:
        short, long = (float(part) for part in minutes.split(","))
    except ValueError:
        raise InputError(f"--minutes {minutes}: not two numbers", hint="write --minutes 1,10") from None
    if not 0 < short < long < 1e4:
        raise InputError(f"--minutes {minutes}: the shorter film must come first", hint="write --minutes 1,10")
    return short, long


def _speed(name: str, task: Task, against: str | None) -> dict[str, Any]:
    """Measure and show the film, and the reference's if it is compared."""

    console.status("measuring a copy and a large product on this device")
    rates, results, films = ceiling(task), [], []
    for module, side in (("ours", "helios"), *([("reference", against)] if against else [])):
        console.status(
            f"{side}: {task.num_frames} frames of {task.size[0]}x{task.size[1]} with {name}, after a warm-up"
        )
        films.append(task.film.replace("helios.mp4", f"{side}.mp4"))
        results.append(run(module, replace(task, film=films[-1])))
    data = {**report.environment(), "film": report.film(name, task), "sides": [report.side(one) for one in results]}
    data |= {"ceiling": rates, **against_floors(task, results[0], rates)}
    if against:
        agreement = report.agreement_db(films[0], films[1])
        data |= {"ratios": report.ratios(results[0], results[1]), "agreement_db": agreement}
        if agreement < report.SAME_FILM_DB:
            console.warning(f"the films are not the same (PSNR {agreement:.1f} dB): the ratio means nothing")
    data["speed"] = _keep_speed(task, results[0], data["date"])
    columns = ["", *(result.side for result in results), *(["ratio"] if against else []), "floor", "share"]
    console.table(columns, report.rows(results, data["floors"]), data=data)
    _show_notes(results, rates)
    return data


def _show_notes(results: list[Result], rates: dict[str, Any]) -> None:

    in_fp8 = f", {rates['fp8_product'] / 1e12:.4g} in fp8" if rates["fp8_product"] else ""
    console.line(
        f"floor: all products at the {rates['product'] / 1e12:.4g} TFLOP/s that a large one reaches here{in_fp8}; "
        f"a copy has {rates['copy'] / 1e9:.4g} GB/s"
    )
    for result in results:
        kinds = ", ".join(f"{part} {dtype}" for part, dtype in result.dtypes.items())
        console.line(f"{result.side} {result.version} on {result.device}, {counted(result.threads, 'thread')}: {kinds}")
        for note in result.notes:
            console.line(f"{result.side}: {note}")


def _keep_speed(task: Task, ours: Result, date: str) -> dict[str, Any]:
    """Keep the operations a second of a timed film, as `helios plan` counts them; return the entry of the JSON.

    Frames are encoded next to the rendering, so the time of that is not known by itself.
    """

    device = ours.device
    if device == "cpu":
        device = cpu_name(ours.threads)
    elif device == "mps":
        device = find_device("mps").name
    work, model = counted_work(task, ours.dtypes["transformer"])
    speed = MeasuredSpeed(
        device=device,
        dtype=measured_dtype(ours.dtype, task.quant),
        parameters=model.parameters["transformer"],
        dit_flops=work.denoise / ours.dit_seconds,
        vae_flops=work.decode / ours.phases["decode"],
        measured=date[:10],
    )
    file = speeds_file()
    try:
        record_speed(speed)
    except OSError as error:
        console.warning(f"the speed could not be saved, so `helios plan` cannot use it: {error}")
        return {**speed._asdict(), "file": None, "problem": str(error)}
    console.notice(f"speed saved in {file}: `helios plan` estimates times from it for models of about this size")
    return {**speed._asdict(), "file": str(file)}


def _memory(name: str, task: Task, lengths: tuple[float, float]) -> dict[str, Any]:
    """Measure and show the peak memory of two lengths of film."""

    results = []
    for minutes in lengths:
        console.status(f"helios: {minutes:g} minutes of {task.size[0]}x{task.size[1]} with {name}")
        results.append(run("ours", replace(task, num_frames=max(1, round(minutes * 60 * DEFAULT_FPS)))))
    ratio = results[1].peak_host_bytes / results[0].peak_host_bytes
    data = {
        **report.environment(),
        "film": report.film(name, task),
        "minutes": list(lengths),
        "sides": [report.side(one) for one in results],
        "peak_ratio": ratio,
    }
    table = [
        [minutes, one.num_frames, round(one.peak_host_bytes / 1e6, 1), round(one.frames_per_second, 1)]
        for minutes, one in zip(lengths, results, strict=True)
    ]
    console.table(["minutes", "frames", "peak memory, MB", "frames a second"], table, data=data)
    console.line(f"the long film's peak is {ratio:.4f} of the short one's")
    return data
