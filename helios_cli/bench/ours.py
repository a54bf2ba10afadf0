"""The helios side of a benchmark: the engine as `helios render` runs it, with an exact clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import helios_kernels
from helios_cli import __version__, machine
from helios_cli.bench.offload import workload_of
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels
from helios_cli.bench.task import STEADY_CHUNKS, Result, Task, serve_task
from helios_cli.cost.memory import MemoryBudget, plan_memory
from helios_cli.cost.placing import allocator_share
from helios_cli.device import device_of, pick_device, torch_dtype
from helios_cli.engine import trial
from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.clock import Clock
from helios_cli.engine.events import ChunkDone, FilmDone
from helios_cli.engine.models import Models
from helios_cli.errors import MachineError
from helios_cli.film.screen import Screen
from helios_cli.units import FRAMES_PER_CHUNK, format_bytes
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import dtype_with
from helios_cli.weights.placement import Placement

if TYPE_CHECKING:
    from helios_cli.recipe.plan import Plan


def time_film(task: Task) -> Result:
    """Render a warm-up of one chunk, then the film, each with models of its own, as a render loads them.

    The film's "text" includes loading the text encoder (of a synthetic size, making its weights), which is freed before
    the transformer comes. `load_seconds` is the warm-up's load of the other two: the first in the process, as on the
    other side.

    Where phases overlap the film is made twice: with an exact clock, which keeps them apart, and as a render makes it;
    the prompt, which is encoded by then, counts once. On a GPU a chunk in which graphs are recorded comes first.
    """
    if task.threads:
        torch.set_num_threads(task.threads)
    device = pick_device(task.device)
    is_gpu = device.type == "cuda"
    if is_gpu and task.vram is not None:
        share = allocator_share(task.vram, torch.cuda.mem_get_info(device)[1])
        torch.cuda.set_per_process_memory_fraction(share, device)
    for _ in trial.settle(device):
        pass
    models = _models(task, device)
    models.choices.settle(task.plan(models.checkpoint.defaults).size)
    warm_up, _ = _film(models, task, warm_up=True, exact=True)
    models.unload()
    models = _models(task, device)
    models.choices.settle(task.plan(models.checkpoint.defaults).size)
    recorded, _ = _film(models, task, warm_up=True, exact=True) if is_gpu else (None, None)
    done, steady = _film(models, task, exact=True)
    timed, steady = _film(models, task) if is_gpu or models.chunks_beside else (done, steady)
    text = (recorded or done).phases["text"]
    stages = sorted(phase for phase in done.phases if phase.startswith("stage "))
    dtypes = {"transformer": models.latent_dtype, "vae": models.vae_dtype, "text_encoder": models.latent_dtype}
    return Result(
        side="helios",
        version=__version__,
        device=torch.cuda.get_device_name(device) if is_gpu else device.type,
        dtypes={name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()},
        load_seconds=warm_up.phases["load"],
        seconds=timed.seconds - timed.phases["load"] - timed.phases["text"] + text,
        phases={
            "text": text,
            **{phase: done.phases[phase] for phase in (*stages, "decode")},
            "write": done.phases["write"] + done.phases["finish"],
        },
        num_frames=done.frames,
        threads=torch.get_num_threads(),
        peak_host_bytes=machine.peak_host_bytes(),
        peak_device_bytes=done.peak_device_bytes,
        peak_reserved_bytes=torch.cuda.max_memory_reserved(device) if is_gpu else None,
        steady_frames_per_second=steady,
        notes=tuple(_notes(models)),
    )


def _notes(models: Models) -> Iterator[str]:
    backend = helios_kernels.backend()
    yield f"kernels: {backend.name}, {backend.reason}"
    if models.chunks_beside > 1:
        yield f"{models.chunks_beside} chunks are decoded at a time while the next one is denoised"
    if models.graphs is not None:
        yield models.graphs.problem or f"{models.graphs.replayed} model calls replayed as graphs"


def _models(task: Task, device: torch.device) -> Models:
    """Return the task's models, with nothing of them loaded yet."""
    dtype = torch_dtype(dtype_with(task.quant, "auto" if task.dtype == "default" else task.dtype), device)
    options: dict[str, Any] = {"quant": task.quant, "attention": task.attention}
    models: Models
    if task.synthetic:
        models = RandomModels(SPECS[task.synthetic], device, dtype, name=task.synthetic, seed=task.seed, **options)
    else:
        checkpoint, placement = Checkpoint.open(Path(task.folder or "")), Placement(*task.placement)
        models = Models(checkpoint, device, dtype, placement=placement, **options)
    if models.placement.mode == "none":
        _require_memory(models, task)
    return models


def _require_memory(models: Models, task: Task) -> None:
    """Raise MachineError, before any weight is read, if the film takes more memory than is free, by `helios plan`."""
    device, checkpoint = models.device, models.checkpoint
    plan = task.plan(checkpoint.defaults)
    load = workload_of(models.name, checkpoint, plan, device, models.dtype, task.quant)
    needed = max(phase.total for phase in plan_memory(load, MemoryBudget(), models.placement).phases)
    free = device_of(device).free_bytes
    if free is not None and needed > free:
        kind = task.quant if task.quant != "none" else load.dtype
        raise MachineError(
            f"the film takes {format_bytes(needed)} in {kind}, but only {format_bytes(free)} is free on {device}",
            hint="`helios doctor` shows what fits here",
        )


def _film(models: Models, task: Task, *, warm_up: bool = False, exact: bool = False) -> tuple[FilmDone, float | None]:
    """Return the film's last event, and `Result.steady_frames_per_second`."""
    plan = task.plan(models.checkpoint.defaults, warm_up=warm_up)
    done = []  # when each chunk's frames were ready
    for event in render_chunks(plan, models, _writer(task, plan), clock=Clock(models.device, exact=exact)):
        if isinstance(event, ChunkDone):
            done.append(time.perf_counter())
    assert isinstance(event, FilmDone)
    return event, steady_rate(done)


def _writer(task: Task, plan: Plan) -> Any:
    if not task.film:
        return Screen(lambda frames: None)
    from helios_cli.film.writer import open_writer  # imports ffmpeg's package, which may be missing here

    return open_writer(task.film, size=plan.size, fps=plan.fps)


def steady_rate(done: list[float]) -> float | None:
    """Return `Result.steady_frames_per_second` of a film whose chunks of full length were done at these times."""
    return FRAMES_PER_CHUNK * (len(done) - 2) / (done[-2] - done[0]) if len(done) >= STEADY_CHUNKS else None


if __name__ == "__main__":
    serve_task(time_film)
