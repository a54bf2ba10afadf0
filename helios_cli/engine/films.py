"""Several films, one after the other or side by side, and takes of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from helios_cli.cost.estimate import groups_of
from helios_cli.engine.events import Event, Notice
from helios_cli.engine.lanes import render_together
from helios_cli.engine.memory import without_frames
from helios_cli.engine.render import render
from helios_cli.engine.script import Planned
from helios_cli.engine.session import Session
from helios_cli.errors import HeliosError, Interrupted
from helios_cli.film.jobs import Job
from helios_cli.film.takes import TakesFiles, takes_of, write_sheet

FilmEvent = tuple[Job | None, Event | HeliosError]
"""An event, or the error that ended a film, with the film's job; None for an event about all films that render."""


def render_films(jobs: Sequence[Job], session: Session, *, stop: bool = False) -> Generator[FilmEvent, None, None]:
    """Render all films, `options.lanes` at a time. The error of an only film is raised, and with `stop` that of any."""
    for group in groups_of(jobs, jobs[0].options.lanes, lambda job: (job.model, job.options.lora)):
        if len(group) > 1:
            yield from _render_lanes(group, session, stop=stop)
        elif stop or len(jobs) == 1:
            yield from _render_one(group[0], session)
        else:
            try:
                yield from _render_one(group[0], session)
            except HeliosError as error:
                failed = without_frames(error)
            else:
                continue
            yield group[0], failed


def _render_one(job: Job, session: Session) -> Iterator[FilmEvent]:
    with closing(render(job.film, job.options, session)) as events:
        for event in events:
            yield job, event


def _render_lanes(jobs: Sequence[Job], session: Session, *, stop: bool) -> Iterator[FilmEvent]:
    """Render films side by side to their ends; with `stop` raise the first error then."""
    first_error = None
    with closing(render_together(jobs, session)) as events:
        for job, event in events:
            if stop and first_error is None and isinstance(event, HeliosError):
                first_error = event
            else:
                yield job, event
    if first_error is not None:
        raise first_error


def render_takes(job: Job, session: Session, next_step: Callable[[int], str]) -> Generator[Event, None, None]:
    """Render the first chunk of a shot with `options.takes` seeds, as clips and on a contact sheet.

    `next_step` says how to make the film with one of the seeds. Raises what `render` raises, and Interrupted.
    """
    film, options = job.film, job.options
    yield from session.load(film, options)
    plan = session.plan(film, options)
    yield from session.notices()
    takes = takes_of(plan, options.takes or 1, options.shot or 1)
    files = TakesFiles.of(job.output, force=True)
    files.make_folder()
    for done, take in enumerate(takes):
        clip = replace(options, output=str(files.clip(take.seed)), metadata=False, force=True)
        try:
            yield from render(film, clip, session, Planned(take.plan, film))
        except KeyboardInterrupt:
            hint = "run the same command again to continue from there"
            if not options.cache:  # finished takes are found again as kept chunks
                hint = "the same command starts again with the first take; leave out --no-cache to keep takes"
            raise Interrupted(f"stopped: {done} of {len(takes)} takes are done", hint=hint) from None
    write_sheet(files, takes)
    yield Notice(f"the takes are on {os.path.relpath(files.sheet)}, one row per seed, and in {files.folder.name}/")
    yield Notice(next_step(takes[-1].seed))
