"""`helios recipe`: prints the schema, converts between forms, reports all errors of a file."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from helios_cli.console import JsonFlag, console
from helios_cli.errors import InputError
from helios_cli.film.jobs import check_clips
from helios_cli.recipe.export import form_of, write_recipe
from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import check_film
from helios_cli.recipe.problems import Problem, RecipeError
from helios_cli.recipe.schema import json_schema
from helios_cli.recipe.settings import film_fps
from helios_cli.recipe.sources import read_films
from helios_cli.recipe.timeline import Timeline
from helios_cli.units import counted, format_seconds

app = typer.Typer(help="Check recipes, convert between their forms, and print their schema.", no_args_is_help=True)

STDOUT = "-"


@app.command()
def schema(json: JsonFlag = False) -> None:
    """Print the JSON Schema of a recipe, for editors and programs: helios recipe schema > helios.schema.json"""

    console.json = True  # the schema is always JSON
    console.result(json_schema())


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Source to read: .txt, .csv, .jsonl, .srt, a recipe, or -.")
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Recipe to write: .toml, .yaml or .json, or - for standard output.")
    ],
    to: Annotated[
        Literal["toml", "yaml", "json"] | None, typer.Option("--to", help="Form on standard output. (default: toml)")
    ] = None,
    film: Annotated[str | None, typer.Option("--film", help="Name of the film, if the source has several.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Convert any source to a recipe: helios recipe convert shots.txt film.toml"""

    form = (to or "toml") if out == STDOUT else form_of(Path(out))
    if to not in (None, form):
        hint = "leave --to out, or change the suffix"
        raise InputError(f"--to {to}: {out} would be {form} by its suffix", hint=hint)
    chosen = _choose(read_films([source]), film, source)
    for notice in chosen.notices:
        console.notice(notice)
    folder = Path.cwd() if out == STDOUT else Path(os.path.abspath(out)).parent
    text = write_recipe(chosen, form, folder)
    if out == STDOUT:
        console.line(text.removesuffix("\n"))
        return
    try:
        with open(out, "w" if force else "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{out} exists", hint="overwrite it with --force") from error
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error


@app.command()
def check(
    sources: Annotated[list[str], typer.Argument(metavar="FILE", help="Sources to check.")],
    json: JsonFlag = False,
) -> None:
    """Report all errors in all files at once; the exit code is 2 if there are any."""

    problems: list[Problem] = []
    films: list[tuple[Film, Timeline]] = []
    for source in sources:
        try:
            for film in read_films([source]):
                timeline = check_film(film)
                films += [(checked, timeline) for checked in check_clips([film], RenderOptions())]
        except RecipeError as error:
            problems += error.problems
    num_films = Counter(film.source for film, _ in films)
    report = []
    for film, timeline in films:
        place = film.source if num_films[film.source] == 1 else f"{film.source}, {film.name}"
        fps = film_fps(RenderOptions(), film.recipe)
        shots, frames = counted(len(film.recipe.shots), "shot"), counted(timeline.num_frames, "frame")
        console.line(f"{place}: {shots}, {frames} ({format_seconds(timeline.num_frames / fps)} at {fps:g} fps)")
        for notice in (*film.notices, *timeline.notices):
            console.notice(f"{place}: {notice}")
        numbers = {"shots": len(film.recipe.shots), "frames": timeline.num_frames}
        report.append({"file": film.source, "film": film.name, **numbers})
    console.result({"films": report, "problems": [asdict(problem) for problem in problems]})
    if problems and not json:
        raise RecipeError(problems)
    if problems:
        raise typer.Exit(2)


def _choose(films: list[Film], name: str | None, source: str) -> Film:
    """Return the film that `--film` names; without it there must be only one."""
    names = [film.name for film in films]
    if name is None and len(films) == 1:
        return films[0]
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    if name is None:
        raise InputError(f"{source} has {len(films)} films", hint=f"choose one with --film: {listed}")
    if name not in names:
        raise InputError(f"{source} has no film {name}", hint=f"it has {listed}")
    return films[names.index(name)]
