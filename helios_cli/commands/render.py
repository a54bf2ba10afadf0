"""`helios render`: sources to films."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from helios_cli import options
from helios_cli.batch.films import render_all
from helios_cli.batch.jobs import (
    Extras,
    check_takes_flags,
    export_forms,
    film_again,
    find_encoding,
    find_jobs,
    find_planned,
)
from helios_cli.batch.table import table_at_the_end
from helios_cli.batch.takes import render_takes
from helios_cli.batch.workbench import Workbench
from helios_cli.console import console
from helios_cli.errors import HeliosError
from helios_cli.plan_view import show_plans
from helios_cli.progress import open_view
from helios_cli.stop import stop_at_once

MAX_TAKES = 100


def render(
    context: typer.Context,
    source: options.Sources = None,
    from_film: Annotated[
        Path | None,
        typer.Option("--from", help="In place of SOURCE: make this film again, from what it, or its .json, records."),
    ] = None,
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
    force: options.Force = False,
    no_cache: options.NoCache = False,
    keep: options.Keep = False,
    takes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TAKES,
            rich_help_panel=options.OUTPUT,
            help="No film: so many seeds of its first chunk as clips and a contact sheet, to choose from.",
        ),
    ] = None,
    shot: Annotated[
        int | None,
        typer.Option(min=1, rich_help_panel=options.OUTPUT, help="Takes of this shot, a cut. (default: the first)"),
    ] = None,
    codec: options.Codec = "h264",
    crf: options.Crf = 17,
    preset: options.Preset = "medium",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    lanes: options.Lanes = 1,
    offload: options.Offload = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    quant: options.Quant = "none",
    attention: options.Attention = "auto",
    no_metadata: Annotated[
        bool,
        typer.Option(
            "--no-metadata", rich_help_panel=options.OUTPUT, help="Keep how it was made out of the film and its .json."
        ),
    ] = False,
    export: Annotated[
        str | None, typer.Option(rich_help_panel=options.OUTPUT, help="Write otio, edl or otio,edl beside the film.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Look at the finished film as helios check does; see --strict.")
    ] = False,
    strict: options.Strict = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan, as helios plan does.")] = False,
    on_error: Annotated[
        Literal["continue", "stop"], typer.Option(help="What one failed film of several means for the others.")
    ] = "continue",
    progress: options.Progress = "auto",
    quiet: options.Quiet = False,
    json: options.Events = False,
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
    wish = options.memory_wish(offload, vram, ram)
    check_takes_flags(takes, shot, from_film, dry_run=dry_run, lanes=lanes, export=export, check=check)
    again = film_again(source, from_film)
    if again:
        revision = revision or again.revision(flags)
        flags, output = again.flags(flags), output or f"{again.film.name}{again.suffix}"
        recorded = {key: value for key, value in again.settings().items() if not _is_given(context, key)}
        device, dtype = recorded.get("device", device), recorded.get("dtype", dtype)
        codec, crf, preset = recorded.get("codec", codec), recorded.get("crf", crf), recorded.get("preset", preset)
        reanchor, quant = recorded.get("reanchor", reanchor), recorded.get("quant", quant)
        attention = recorded.get("attention", attention)
    films = [again.film] if again else None
    if dry_run:
        from helios_cli.cost.estimate import Terms, estimate_films
        from helios_cli.film.cache import Cache

        console.json = json or progress == "json"
        planned = find_planned(source, flags, output, codec, crf, preset, export=export, films=films, strict=strict)
        terms = Terms(flags, revision, device, dtype, planned[0].output, codec, crf, reanchor, strict)
        terms = replace(terms, quant=quant, attention=attention, wish=wish, lanes=lanes)
        if again and again.record.attention_taken:
            terms = replace(terms, attention_wanted=again.record.attention_taken)
        if not no_cache:
            terms = replace(terms, is_kept=Cache().has)
        show_plans(estimate_films([job.film for job in planned], terms))
        return
    shown_shot = takes and (shot or 1)
    jobs = find_jobs(source, flags, output, force=force, takes_of_shot=shown_shot, films=films, strict=strict)
    extras = Extras(again, not no_metadata, export_forms(export, jobs, force=force), check)
    encoding = find_encoding(jobs, codec, crf, preset, clips=takes is not None)
    kind = "none" if quiet else "json" if json else "plain" if lanes > 1 and progress in ("auto", "rich") else progress
    shown = kind not in ("none", "json")
    with stop_at_once() as is_stopped, table_at_the_end(jobs, shown=shown), open_view(kind) as view:
        bench = Workbench(flags, revision, device, dtype, encoding, view, strict, reanchor, not no_cache, keep, extras)
        bench.quant, bench.attention, bench.wish, bench.is_stopped = quant, attention, wish, is_stopped
        try:
            if takes:
                render_takes(jobs[0], bench, takes, shot or 1, context)
                return
            failed = list(render_all(jobs, bench, stop=on_error == "stop", lanes=lanes))
        finally:
            bench.close()
    if failed:
        raise HeliosError(f"{len(failed)} of {len(jobs)} films failed: {', '.join(failed)}")


def _is_given(context: typer.Context, key: str) -> bool:
    source = context.get_parameter_source(key)
    return source is not None and source.name != "DEFAULT"
