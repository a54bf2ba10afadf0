"""The helios side of a benchmark: the engine as `helios render` runs it, with an exact clock."""

from __future__ import annotations

from pathlib import Path

import torch

from helios_cli import __version__, machine
from helios_cli.bench.job import Job, Result, job_plan, peak_host_bytes, serve
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import RandomModels
from helios_cli.engine.clock import Clock
from helios_cli.engine.events import FilmDone
from helios_cli.engine.models import Models
from helios_cli.engine.render import render
from helios_cli.engine.writer import open_writer
from helios_cli.recipe.plan import Plan
from helios_cli.recipe.settings import ModelDefaults
from helios_cli.weights.checkpoint import Checkpoint


def measure(job: Job) -> Result:
    """Render a warm-up of one chunk, then the film.

    The warm-up loads everything and encodes the prompt, once, as in any render; the film's "text" is that encoding,
    with its encoder's load, which cannot be told apart from it.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    device = machine.pick_device(job.device)
    models = open_models(job, device)
    preset = models.checkpoint.preset
    defaults = ModelDefaults(models.checkpoint.native_size, preset.steps, preset.guidance)
    warm = _film(job_plan(job, defaults, warm_up=True), models, job)
    done = _film(job_plan(job, defaults), models, job)
    phases = {**done.phases, "text": warm.phases["text"]}
    return Result(
        side="helios",
        version=__version__,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtypes={name: str(dtype).removeprefix("torch.") for name, dtype in _dtypes(models).items()},
        load_seconds=warm.phases["load"],
        seconds=done.seconds - done.phases["text"] + warm.phases["text"],
        phases={
            "text": phases["text"],
            **{name: seconds for name, seconds in sorted(phases.items()) if name.startswith("stage ")},
            "decode": phases["decode"],
            "write": phases["write"] + phases["finish"],
        },
        num_frames=done.frames,
        peak_host_bytes=peak_host_bytes(),
        peak_device_bytes=done.peak_device_bytes,
    )


def open_models(job: Job, device: torch.device) -> Models:
    """The job's models, nothing of them loaded yet."""
    dtype, _ = machine.pick_dtype("auto" if job.dtype == "default" else job.dtype, device)
    if job.synthetic:
        return RandomModels(SPECS[job.synthetic], device, dtype, name=job.synthetic, seed=job.seed)
    return Models(Checkpoint.open(Path(job.folder)), device, dtype)


def _film(plan: Plan, models: Models, job: Job) -> FilmDone:
    writer = open_writer(job.film, size=plan.size, fps=plan.fps)
    *_, done = render(plan, models, writer, clock=Clock(models.device, exact=True))
    return done


def _dtypes(models: Models) -> dict[str, torch.dtype]:
    return {"transformer": models.dtype, "vae": models.vae_dtype, "text_encoder": models.dtype}


if __name__ == "__main__":
    serve(measure)
