"""Several films, one after the other or side by side, and takes of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from helios_cli.cost.estimate import groups_of
from helios_cli.engine.events import Event, Notice
from helios_cli.engine.lanes import render_together
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
    for group in groups_of(jobs, jobs[0].options.lanes, lambda job: job.model):
        first_error = None
        for job, event in _render_group(group, session):
            if isinstance(event, HeliosError) and (stop or len(jobs) == 1):
                first_error = first_error or event
            else:
                yield job, event
        if first_error is not None:
            raise first_error


def _render_group(jobs: Sequence[Job], session: Session) -> Iterator[FilmEvent]:
    if len(jobs) > 1:
        yield from render_together(jobs, session)
        return
    (job,) = jobs
    try:
        for event in render(job.film, job.options, session):
            yield job, event
    except HeliosError as error:
        failed = error.with_traceback(None)
    else:
        return
    yield job, failed


def render_takes(job: Job, session: Session, next_step: Callable[[int], str]) -> Generator[Event, None, None]:
    """Render the first chunk of a shot with `options.takes` seeds, as clips and on a contact sheet.

    `next_step` says how to make the film with one of the seeds. Raises what `render` raises, and Interrupted.
    """
    film, options = job.film, job.options
    session.load(film, options)
    plan = session.plan(film, options)
    yield from session.notices()
    takes = takes_of(plan, options.takes or 1, options.shot or 1)
    files = TakesFiles.of(job.output, force=True)
    files.make_folder()
    for done, take in enumerate(takes):
        clip = replace(options, output=str(files.clip(take.seed)), metadata=False)
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
