"""`helios render`: sources to films."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from helios_cli import options
from helios_cli.console import console
from helios_cli.errors import HeliosError, InputError, Interrupted
from helios_cli.plan_view import show_plans
from helios_cli.progress import View, open_view

if TYPE_CHECKING:
    import torch

    from helios_cli.engine.ffmpeg import Encoding
    from helios_cli.engine.models import Models
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.fingerprint import Arithmetic
    from helios_cli.recipe.plan import Plan
    from helios_cli.recipe.settings import Flags


def render(
    source: options.Sources,
    model: options.Model = None,
    revision: options.Revision = None,
    minutes: options.Minutes = None,
    seconds: options.Seconds = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    size: options.Size = None,
    seed: options.Seed = None,
    negative: options.Negative = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    image: options.Image = None,
    video: options.Video = None,
    reanchor: options.Reanchor = False,
    output: options.Output = None,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=options.OUTPUT, help="Replace a finished film.")
    ] = False,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", rich_help_panel=options.OUTPUT, help="Take no chunks of earlier films, keep none."),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep", rich_help_panel=options.OUTPUT, help="Leave journal and pieces beside the film."),
    ] = False,
    codec: options.Codec = "h264",
    crf: options.Crf = 17,
    preset: Annotated[
        str, typer.Option(rich_help_panel=options.OUTPUT, help="Encoder preset, ultrafast to veryslow.")
    ] = "medium",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    strict: options.Strict = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan, as helios plan does.")] = False,
    on_error: Annotated[
        Literal["continue", "stop"], typer.Option(help="What one failed film of several means for the others.")
    ] = "continue",
    progress: Annotated[
        Literal["auto", "rich", "plain", "json", "none"], typer.Option(help="How to show it.")
    ] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Same as --progress none.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Same as --progress json: one event a line.")] = False,
) -> None:
    """Render films from prompts: helios render "a red ball rolls left" --seconds 20"""
    flags = options.film_flags(
        model=model,
        minutes=minutes,
        seconds=seconds,
        frames=frames,
        fps=fps,
        size=size,
        seed=seed,
        negative=negative,
        steps=steps,
        guidance=guidance,
        image=image,
        video=video,
    )
    if dry_run:
        from helios_cli.cost.estimate import Terms, estimate_sources

        console.json = json or progress == "json"
        terms = Terms(flags, revision, device, dtype, output, codec, crf, reanchor=reanchor, strict=strict)
        show_plans(estimate_sources(source, terms))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a machine that is taken away is a Ctrl-C
    jobs = _jobs(source, flags, output, force=force)
    encoding = _encoding(jobs, codec, crf, preset)
    with open_view("none" if quiet else "json" if json else progress) as view:
        bench = _Workbench(flags, revision, device, dtype, encoding, view, strict, reanchor, not no_cache, keep)
        failed = list(_render_all(jobs, bench, stop=on_error == "stop"))
    if failed:
        raise HeliosError(f"{len(failed)} of {len(jobs)} films failed: {', '.join(failed)}")


@dataclass(frozen=True)
class _Job:
    film: Film
    model: str
    output: str


def _jobs(sources: list[str], flags: Flags, output: str | None, *, force: bool) -> list[_Job]:
    """Films, models and output names; everything about them that can be wrong without a model is found here."""
    from helios_cli.recipe.plan import check_film
    from helios_cli.recipe.settings import choose_model
    from helios_cli.recipe.sources import read_films

    films = read_films(sources)
    for film in films:
        check_film(film, flags)
    outputs = _outputs(films, output)

    from helios_cli.engine.writer import check_target  # after the recipes: it brings in numpy

    jobs = []
    for film, target in zip(films, outputs, strict=True):
        check_target(target, force=force)
        name, origin = choose_model(film.recipe, flags)
        jobs.append(_Job(film, os.environ.get("HELIOS_MODEL") or name if origin == "default" else name, target))
    return jobs


def _outputs(films: list[Film], output: str | None) -> list[str]:
    if len(films) == 1:
        return [output or f"{films[0].name}.mp4"]
    if output and not Path(output).is_dir():
        raise InputError(f"-o {output}: {len(films)} films need a folder that exists", hint=f"mkdir -p {output}")
    names = [f"{film.name}.mp4" for film in films]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"several films would be called {', '.join(doubled)}", hint="rename their sources")
    return [str(Path(output or "") / name) for name in names]


def _encoding(jobs: list[_Job], codec: str, crf: int, preset: str) -> Encoding:
    """The .mp4 encoding, tried on one frame if any film needs it: not two hours later."""
    from helios_cli.engine.ffmpeg import Encoding, check_encoding

    if any(job.output.lower().endswith(".mp4") for job in jobs):
        return check_encoding(codec=codec, crf=crf, preset=preset)
    return Encoding(codec, crf, preset)


@dataclass
class _Workbench:
    """What all films of one command share: flags, device, and the model that is loaded."""

    flags: Flags
    revision: str | None
    device_name: str
    dtype_name: str
    encoding: Encoding
    view: View
    strict: bool
    reanchor: bool
    use_cache: bool
    keep: bool
    loaded: dict[str, Models] = field(default_factory=dict)

    def tell(self, message: str) -> None:
        from helios_cli.engine.events import Notice

        self.view.show(Notice(message))

    def device(self) -> tuple[torch.device, torch.dtype]:
        from helios_cli import machine

        device = machine.pick_device(self.device_name)
        return device, machine.pick_dtype(self.dtype_name, device)[0]

    def plan(self, job: _Job, models: Models) -> Plan:
        from helios_cli.recipe.plan import plan_film
        from helios_cli.recipe.settings import ModelDefaults, resolve

        checkpoint = models.checkpoint
        defaults = ModelDefaults(checkpoint.native_size, checkpoint.preset.steps, checkpoint.preset.guidance)
        return plan_film(job.film, resolve(job.film.recipe, self.flags, defaults), strict=self.strict)

    def models(self, name: str) -> Models:
        """The loaded model called `name`; several films share it."""
        if name not in self.loaded:
            self.loaded.clear()  # one model in memory at a time
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def _load(self, name: str) -> Models:
        from helios_cli.engine import preflight
        from helios_cli.engine.models import Models
        from helios_cli.recipe.settings import DEFAULT_MODEL
        from helios_cli.weights import hub
        from helios_cli.weights.checkpoint import Checkpoint

        device, dtype = self.device()
        if name == DEFAULT_MODEL:
            name, line = preflight.auto_model(device, dtype)
            self.tell(line)
        folder = hub.resolve(name, self.revision, progress=console.progress_bytes)
        checkpoint = Checkpoint.open(folder)
        if checkpoint.knows:
            self.tell(f"{name} {'' if checkpoint.trained else 'is untrained; it '}knows {checkpoint.knows}")
        preflight.require_memory(checkpoint, device, dtype)
        return Models(checkpoint, device, dtype, name=name)


def _render_all(jobs: list[_Job], bench: _Workbench, *, stop: bool) -> Iterator[str]:
    """Renders all films; yields the names of those that failed. The error of an only film is raised as it is."""
    for job in jobs:
        try:
            _render_one(job, bench)
        except Interrupted:
            raise
        except HeliosError as error:
            if stop or len(jobs) == 1:
                raise
            console.error(error)
            yield job.film.name


def _render_one(job: _Job, bench: _Workbench) -> None:
    from helios_cli.cost.disk import film_bytes
    from helios_cli.engine.cache import Cache
    from helios_cli.engine.render import render as render_film
    from helios_cli.engine.target import Target, check_space
    from helios_cli.engine.writer import open_writer
    from helios_cli.recipe.fingerprint import chunk_fingerprints
    from helios_cli.weights.identity import weights_identity

    models = bench.models(job.model)
    plan = bench.plan(job, models)
    for notice in plan.notices:
        bench.tell(notice)
    encoding = bench.encoding
    target = Target.of(job.output)
    if notice := check_space(target, film_bytes(plan, target.kind, encoding.codec, encoding.crf)):
        bench.tell(notice)
    weights = weights_identity(models.checkpoint)
    writer = open_writer(
        job.output,
        size=plan.size,
        fps=plan.fps,
        codec=encoding.codec,
        crf=encoding.crf,
        preset=encoding.preset,
        keep=bench.keep,
    )
    events = render_film(
        plan,
        models,
        writer,
        reanchor=bench.reanchor,
        fingerprints=chunk_fingerprints(plan, weights, _arithmetic(models), reanchor=bench.reanchor),
        cache=Cache() if bench.use_cache else None,
    )
    try:
        with contextlib.closing(events):
            for event in events:
                bench.view.show(event)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped: {writer.safe_chunks} of the {len(plan.chunks)} chunks of {job.output} are safe",
            hint="run the same command again to go on from there",
        ) from None


def _arithmetic(models: Models) -> Arithmetic:
    """What rounds the numbers, as `helios plan` names it too."""
    import torch

    from helios_cli import machine
    from helios_cli.cost.device import cpu_name
    from helios_cli.recipe.fingerprint import Arithmetic

    device = models.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = cpu_name(torch.get_num_threads()) if device.type == "cpu" else machine.cpu().model
    return Arithmetic(name, str(models.dtype).removeprefix("torch."), metadata.version("torch"))
