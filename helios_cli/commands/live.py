"""`helios live`: a film is rendered while its shot list is being written."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli import options
from helios_cli.batch.films import Run, render_run
from helios_cli.batch.jobs import Extras, Job, check_output, find_encoding, find_jobs, given_flags
from helios_cli.batch.workbench import Workbench
from helios_cli.console import console
from helios_cli.errors import InputError, Interrupted, OutOfMemory
from helios_cli.progress import open_view
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS, Transition, parse_duration
from helios_cli.stop import stop_at_once
from helios_cli.units import counted
from helios_cli.visible import printable

if TYPE_CHECKING:
    from helios_cli.engine.models import Models
    from helios_cli.live.lines import Lines
    from helios_cli.live.recipe_file import RecipeFile
    from helios_cli.live.session import Manner
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.plan import Plan
    from helios_cli.recipe.schema import Shot
    from helios_cli.recipe.settings import Flags, Settings

DEFAULT_OUTPUT = "live.mp4"

IN_THE_RECIPE = ("seconds", "minutes", "frames", "fps", "size", "seed", "negative", "steps", "guidance")
OF_LIVE = ("prompt", "model", "image", "video", "transition", "hold", "force", "progress", "quiet", "json")
"""Parameters that a render of the recipe does without: with those that are in it."""


def live(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The first prompt, in the place of a line.")
    ] = None,
    transition: Annotated[
        Transition, typer.Option(help="How a prompt comes into force whose line does not say it.")
    ] = "blend",
    hold: Annotated[
        str, typer.Option(help="How long a prompt stays at least: 10s, 1m30s.")
    ] = f"{DEFAULT_BLEND_SECONDS:g}s",
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
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", rich_help_panel=options.OUTPUT, help=".mp4, lossless .mkv, or folder/ for PNG frames."
        ),
    ] = DEFAULT_OUTPUT,
    force: options.Force = False,
    no_cache: options.NoCache = False,
    keep: options.Keep = False,
    codec: options.Codec = "h264",
    crf: options.Crf = 17,
    preset: options.Preset = "medium",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    offload: options.Offload = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    quant: options.Quant = "none",
    attention: options.Attention = "auto",
    progress: options.Progress = "auto",
    quiet: options.Quiet = False,
    json: options.Events = False,
) -> None:
    r"""Render while prompts arrive, a line of standard input each: helios live "a red ball rolls left" -o film.mp4

    A prompt comes into force with the next chunk, and stays until the next line.
    A bracket before it says how, and for how long at least, in place of
    --transition and --hold: \[cut] a harbour, [12s] the sea, \[switch 8s] a storm.
    Empty lines and those that begin with # are skipped.
    The film ends with the input (Ctrl-D), or at the length that is given.

    What was typed stands beside it as a recipe: helios render film.toml makes
    the same film again, or finishes it. While it grows, play film.partial.mp4.
    """
    from helios_cli.film.target import Target
    from helios_cli.live.lines import Lines
    from helios_cli.live.recipe_file import RecipeFile, check_recipe, recipe_path
    from helios_cli.live.session import Manner
    from helios_cli.recipe.plan import plan_film

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
    wish = options.memory_wish(offload, vram, ram)
    manner = Manner(transition, options.read("--hold", parse_duration, hold))
    check_output(output)
    target = Target.of(output)
    path = recipe_path(target)
    recipe_file = RecipeFile(path, _render_command(context, path, output))
    first = _first_shot(prompt)
    job = find_jobs([], flags, output, force=force, takes_of_shot=None, films=[_film(path, first)])[0]
    check_recipe(path, target, recipe_file.command, force=force)
    encoding = find_encoding([job], codec, crf, preset, clips=False)
    typed = sys.stdin is not None and sys.stdin.isatty()
    kind = "none" if quiet else "json" if json else "plain" if typed and progress in ("auto", "rich") else progress
    with stop_at_once() as is_stopped, open_view(kind) as view:
        extras = Extras(None, True, (), False)
        bench = Workbench(flags, revision, device, dtype, encoding, view, False, False, not no_cache, keep, extras)
        bench.quant, bench.attention, bench.wish, bench.is_stopped = quant, attention, wish, is_stopped
        models = bench.models(job.model)
        settings = bench.settings(job.film, models)  # what the model cannot do is said before a prompt is waited for
        lines = Lines(None if sys.stdin is None else sys.stdin.fileno(), console.warning)
        if typed and not quiet:
            console.status("type a prompt and Enter, one after the other; Ctrl-D ends the film")
        if first is None:
            _load_meanwhile(plan_film(job.film, settings), models, bench)
            first = lines.wait()
        if first is None:
            raise InputError("standard input holds no prompt", hint='helios live "A boat leaves the harbour."')
        job.film = _resolved(job.film, first, flags, settings, models.name)
        _render(job, lines, manner, recipe_file, models, bench)


def _load_meanwhile(plan: Plan, models: Models, bench: Workbench) -> None:
    """Load for a film like `plan` before its first prompt is there, if the text encoder then has room beside the rest.

    Where memory runs out over that, the film begins as if nothing had been loaded.
    """
    import torch

    from helios_cli.engine.calls import memory_told

    bench.place([plan], models, prompts_come=True)
    if models.placement.text_beside:
        try:
            with memory_told(), torch.inference_mode():
                _ = models.dit, models.vae
        except OutOfMemory:
            models.unload()


def _first_shot(prompt: str | None) -> Shot | None:
    """The argument, which is read as a line is."""
    from helios_cli.live.lines import read_line
    from helios_cli.recipe.problems import Problems
    from helios_cli.recipe.sources import is_meant_as_path

    if prompt is None:
        return None
    if is_meant_as_path(prompt) and not os.path.exists(prompt):
        raise InputError(f"{printable(prompt, 200)}: no such file", hint='helios live "A boat leaves the harbour."')
    if os.path.isfile(prompt):
        raise InputError(f"{prompt} is a file", hint=f"helios live < {shlex.quote(prompt)} takes its lines as prompts")
    shot = read_line(os.fsencode(prompt), Problems("the prompt"))
    if shot is None:
        raise InputError("the prompt is empty", hint="say what the film shows")
    return shot


def _film(path: Path, first: Shot | None) -> Film:
    """The film by what is known of it before the first prompt, for which any words stand."""
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.schema import Recipe, Shot

    shot = Shot(prompt=first.prompt if first else "a prompt")
    return Film(path.stem, os.path.relpath(path), Recipe(shot=[shot]), path.parent)


def _render(job: Job, lines: Lines, manner: Manner, recipe_file: RecipeFile, models: Models, bench: Workbench) -> None:
    """The film that begins as the job's does."""
    from helios_cli.live.session import Session
    from helios_cli.recipe.plan import plan_film
    from helios_cli.recipe.settings import Flags

    def keep(film: Film) -> None:
        recipe_file.write(film)
        job.film = film

    def plan_of(film: Film) -> Plan:
        bench.introduce(models, [film.recipe.shots[-1].prompt])
        return plan_film(film, bench.settings(film, models))

    bench.flags = Flags()  # all that they say is in the recipe
    fps = job.film.recipe.fps
    session = Session(job.film, fps, lines, manner, plan_of=plan_of, keep=keep, tell=console.warning)
    bench.place([session.plan], models, prompts_come=True)
    try:
        render_run(Run(session, job.output, job), models, bench)
    except Interrupted as stopped:
        raise Interrupted(stopped.message, hint=f"{recipe_file.command} finishes the film") from None
    finally:
        bench.close()
    if lines.num_waiting:
        bench.tell(f"{counted(lines.num_waiting, 'prompt')} came too late for the film")


def _resolved(film: Film, first: Shot, flags: Flags, settings: Settings, model: str) -> Film:
    """The film of the first prompt with every setting written out, so that its recipe does without flags."""
    from helios_cli.recipe.schema import Recipe
    from helios_cli.recipe.values import LENGTH_KEYS
    from helios_cli.weights.hub import source_of
    from helios_cli.weights.names import EMBEDDED

    folder = source_of(model).folder
    keys = {
        "model": model if folder is None or model == EMBEDDED else str(folder.absolute()),
        "fps": settings.fps,
        "size": settings.size,
        **{key: getattr(flags, key) for key in LENGTH_KEYS if getattr(flags, key) is not None},
        "seed": settings.seed,
        **({"negative": settings.negative} if settings.negative else {}),
        "steps": settings.steps,
        "guidance": settings.guidance,
    }
    start = {"image": settings.image, "video": settings.video}
    shot = first.model_copy(update={key: str(path) for key, path in start.items() if path is not None})
    return replace(film, recipe=Recipe.model_validate({**keys, "shot": [shot]}))


def _render_command(context: typer.Context, path: Path, output: str) -> str:
    """What to type for the same film from its recipe."""
    left_out = {*IN_THE_RECIPE, *OF_LIVE, *(["output"] if output == f"{path.stem}.mp4" else [])}
    return shlex.join(["helios", "render", os.path.relpath(path), *given_flags(context, left_out)])
