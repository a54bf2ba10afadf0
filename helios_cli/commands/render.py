"""`helios render`: films from prompts and shot lists."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from helios_cli.console import console
from helios_cli.cost.estimate import estimate_jobs
from helios_cli.cost.farm import farm_of
from helios_cli.film import clashes, jobs
from helios_cli.films_view import FilmsView
from helios_cli.options import (
    Events,
    OptionalSources,
    Progress,
    Quiet,
    flag_words,
    named_flags,
    progress_kind,
    render_options,
)
from helios_cli.plan_view import show_plans
from helios_cli.progress import show_all
from helios_cli.recipe.files import RECIPES
from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.stop import stop_at_once


@render_options(without=())
def render(
    context: typer.Context,
    options: RenderOptions,
    source: OptionalSources = None,
    from_film: Annotated[
        Path | None,
        typer.Option("--from", help="Film, or its .json, to render again from its record, instead of SOURCE."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan only, as `helios plan` does.")] = False,
    on_error: Annotated[
        Literal["continue", "stop"], typer.Option(help="Continue or stop after one of several films fails.")
    ] = "continue",
    progress: Progress = "auto",
    quiet: Quiet = False,
    json: Events = False,
) -> None:
    """Render films from prompts: helios render "a red ball rolls left" --seconds 20"""

    clashes.check_shared_out(options)
    clashes.check_takes(options, from_film=from_film is not None, dry_run=dry_run)
    repeats = jobs.film_to_repeat(source, from_film)
    options = repeats.options(options, named_flags(context)) if repeats else options
    films = [repeats.film] if repeats else None
    if dry_run:
        console.json = json or progress == "json"
        estimates = estimate_jobs(jobs.plan_jobs(source or [], options, films), options)
        show_plans(estimates, farm_of(estimates, options))
        return
    asked = jobs.find_jobs(source or [], options, films)
    jobs.check_encoding(asked)
    kind = progress_kind(progress, quiet=quiet, json=json)
    if options.is_stream:
        clashes.check_stdout(json=kind == "json")
    if options.lanes > 1 and kind in ("auto", "rich"):
        kind = "plain"
    with stop_at_once() as is_stopped, FilmsView(asked, kind, is_stopped) as shown:
        if options.is_shared_out:
            from helios_cli.farm.start import open_farm

            driver = open_farm(asked, options, stop=on_error == "stop", progress=console.progress_bytes)
            show_all(driver.run(), shown.show, driver)
            shown.require_films()
            return
        from helios_cli.engine.films import render_films, render_takes
        from helios_cli.engine.session import Session

        with Session(is_stopped=is_stopped, progress=console.progress_bytes) as session:
            if options.takes:
                next_step = partial(_next_step, context, asked[0].film, options)
                show_all(render_takes(asked[0], session, next_step), shown.view.show, session)
                return
            show_all(render_films(asked, session, stop=on_error == "stop"), shown.show, session)
    shown.require_films()


def _next_step(context: typer.Context, film: Film, options: RenderOptions, seed: int) -> str:
    """Return the command that makes the film with the take of `seed`."""
    result = "goes on from its kept chunk" if options.cache else "renders it again, with the same frames"
    shot = options.shot or 1
    if shot == 1 and film.recipe.shots[0].seed is None:
        return f"the film with seed {seed}, for example, {result}: {_command_line(context, seed)}"
    edit = f"give shot {shot} of {film.source} the seed {seed}, for example"
    if Path(film.source).suffix.lower() not in RECIPES:
        edit += " (as a recipe, which `helios recipe convert` makes of it)"
    return f"{edit}; the film then {result}: {_command_line(context, None)}"


def _command_line(context: typer.Context, seed: int | None) -> str:
    """The command as it was given, for the film and not its takes, with another seed if there is one."""
    left_out = {"source", "takes", "shot", "force", *(["seed"] if seed is not None else [])}
    seeds = [] if seed is None else ["--seed", str(seed)]
    return shlex.join(["helios", "render", *context.params["source"], *flag_words(context, left_out), *seeds])
