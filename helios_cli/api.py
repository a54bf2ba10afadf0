"""The Python interface: `helios.render` and `helios.plan`, what the commands of the same names do.

import helios_cli as helios

for event in helios.render("a red ball rolls left", seconds=10, output="ball.mp4"):
    print(event)
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_cli.cost.estimate import Estimate, estimate_jobs
from helios_cli.errors import HeliosError, InputError
from helios_cli.film.clashes import check_shared_out
from helios_cli.film.jobs import check_encoding, find_jobs, plan_jobs
from helios_cli.recipe.film import Film
from helios_cli.recipe.flags import read_flag
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.schema import Recipe
from helios_cli.recipe.sources import read_films
from helios_cli.recipe.values import parse_as

if TYPE_CHECKING:
    from helios_cli.engine.events import Event
    from helios_cli.engine.session import Session

Source = str | Path | Recipe | Film


def render(source: Source, *, session: Session | None = None, **options: Any) -> Generator[Event, None, None]:
    """Render one film, and yield the events of `helios_cli.engine.events` as they happen; the last one is FilmDone.

    A film that was interrupted is continued by the same call, and chunks that earlier films left are taken over.
    Nothing is printed. To stop, close the generator: chunks that are done stay safe.

    Args:
        source: a prompt, the path of a prompt file or recipe, a `Recipe`, or a `Film`.
        session: a `Session` that keeps the model for further films; without one the model is freed at the end. Workers
            keep the model themselves.
        options: fields of `RenderOptions`, with the words that the flags of `helios render` take: `size="640x384"`,
            `seconds="1m30s"`, `vram="6G"`; numbers and tuples do as well.

    Raises:
        HeliosError: the subclass says why (`helios_cli.errors`); `message` and `hint` say what, where and what next.
    """
    from helios_cli.engine.render import render
    from helios_cli.engine.session import Session

    parsed = RenderOptions.parse(**options)
    check_shared_out(parsed)
    if parsed.takes or parsed.shot or parsed.lanes > 1:
        raise InputError("takes, shot and lanes are for the command", hint="render films one by one")
    (job,) = find_jobs([], parsed, [read_film(source)])
    check_encoding([job])
    if parsed.is_shared_out:
        from helios_cli.farm.start import open_farm

        with closing(open_farm([job], parsed).run()) as events:
            for _, event in events:
                assert not isinstance(event, HeliosError), "the error of an only film is raised"
                yield event
        return
    with Session() if session is None else nullcontext(session) as session:
        yield from render(job.film, job.options, session)


def plan(source: Source, *, on: str | None = None, price: float | None = None, **options: Any) -> Estimate:
    """Estimate one film before anything is loaded: its chunks, model calls, memory, disk, time and cost.

    Does not import torch. `on` names a GPU that is not here, `price` that of a GPU-hour; the rest is as in `render`.
    """
    parsed = RenderOptions.parse(**options)
    on = read_flag("--on", partial(parse_as, str | None), on)
    price = read_flag("--price", partial(parse_as, float | None), price)
    (estimate,) = estimate_jobs(plan_jobs([], parsed, [read_film(source)]), parsed, on=on, price=price)
    return estimate


def read_film(source: Source) -> Film:
    """The film of a source, as the command line reads it. RecipeError for errors in a file, else InputError.

    The pictures of a `Recipe` are relative to the current folder, and its film is called "film".
    """
    if isinstance(source, Film):
        return source
    if isinstance(source, Recipe):
        return Film("film", "recipe", source, Path.cwd())
    films = read_films([str(source)])
    if len(films) != 1:
        raise InputError(f"{source} holds {len(films)} films", hint="split it, or render it with `helios render`")
    return films[0]
