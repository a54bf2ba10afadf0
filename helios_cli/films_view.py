"""Shows the films of one command, whoever renders them, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from helios_cli.console import console
from helios_cli.engine.events import Event, FilmDone
from helios_cli.errors import HeliosError, Interrupted
from helios_cli.farm_track import FarmTrack
from helios_cli.farm_view import PlainFarmView, RichFarmView, aligned, end_line
from helios_cli.progress import ProgressKind, SilentView, View, open_view
from helios_cli.stop import IsStopped
from helios_cli.units import counted, format_figure

if TYPE_CHECKING:
    from helios_cli.film.jobs import Job


class FilmsView:
    """Shows the films of one command as `kind` says, and at the end what became of each of several, and of workers.

    Attributes:
        is_stopped: returns whether the command has to stop, which takes workers up to a chunk.
        view: displays events; open within the block, so that what comes at the end stays below it.
        failed: names of films that failed, whose errors were shown.
    """

    def __init__(self, jobs: Sequence[Job], kind: ProgressKind, is_stopped: IsStopped = lambda: False) -> None:
        self.jobs = jobs
        self.kind = kind
        self.is_stopped = is_stopped
        self.view: View = SilentView()
        self.failed: list[str] = []
        self._farm = FarmTrack([job.film.name for job in jobs]) if jobs[0].options.is_shared_out else None
        self._side_by_side = len(jobs) > 1 and (self._farm is not None or jobs[0].options.lanes > 1)
        self._views: dict[int, View] = {}
        self._ends: dict[int, FilmDone | HeliosError] = {}
        self._begun: set[int] = set()
        self._opened = ExitStack()

    def __enter__(self) -> FilmsView:
        farm = self._farm
        if farm is None:
            view = open_view(self.kind)
        else:
            view = open_view(
                self.kind,
                plain=lambda: PlainFarmView(farm),
                rich=lambda terminal: RichFarmView(farm, terminal, self.is_stopped),
            )
        self.view = self._opened.enter_context(view)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._opened.close()
        if self.kind in ("none", "json"):
            return
        if len(self.jobs) > 1:
            self._print_table(error)
        if self._farm is not None and self._farm.workers:
            console.status(end_line(self._farm))

    def require_films(self) -> None:
        """Raise HeliosError if films failed."""
        if self.failed:
            raise HeliosError(f"{len(self.failed)} of {len(self.jobs)} films failed: {', '.join(self.failed)}")

    def show(self, film_event: tuple[Job | None, Event | HeliosError]) -> None:
        job, event = film_event
        if self._farm is not None:
            self._farm.follow(None if job is None else job.film.name, event)
        if job is not None:
            self._begun.add(id(job))
            if isinstance(event, FilmDone | HeliosError):
                self._ends[id(job)] = event
        if isinstance(event, HeliosError):
            self.failed += [] if job is None else [job.film.name]
            self._show_error(job, event)
        else:
            self._view_of(job).show(event)

    def _show_error(self, job: Job | None, error: HeliosError) -> None:
        name = "" if job is None or not self._side_by_side else f"{job.film.name}: "
        console.error(HeliosError(name + error.message.removeprefix(name), hint=error.hint))

    def _view_of(self, job: Job | None) -> View:
        if job is None or not (self._side_by_side or (self._farm is not None and self.kind != "json")):
            return self.view
        return self._views.setdefault(id(job), self.view.of(job.film.name))  # titles may be equal, names are not

    def _print_table(self, error: BaseException | None) -> None:
        rows: list[tuple[str, ...]] = [("film", "result", "frames", "seconds", "frames/s", "output or error")]
        rows += [self._row(job, error) for job in self.jobs]
        for line in aligned(rows, numbers=(2, 3, 4)):
            console.status(line)

    def _row(self, job: Job, error: BaseException | None) -> tuple[str, ...]:
        """Return the row of a film. `error`, which ended the command, applies to films that began and did not end."""
        end = self._ends.get(id(job), error if id(job) in self._begun else None)
        if isinstance(end, FilmDone):
            speed = format_figure(end.frames_per_second) if end.frames > end.frames_reused else "reused"
            return job.film.name, "done", str(end.frames), f"{end.seconds:.1f}", speed, job.output
        if end is None:
            return job.film.name, "not tried", "", "", "", ""
        if isinstance(end, Interrupted) and self._farm is not None:  # the message is about all films
            done, chunks = self._farm.chunks_of(job.film.name)
            return job.film.name, "stopped", "", "", "", f"{done} of {counted(chunks, 'chunk')} done"
        result = "stopped" if isinstance(end, Interrupted) else "failed"
        message = end.message if isinstance(end, HeliosError) else f"bug: {type(end).__name__}"
        return job.film.name, result, "", "", "", message.splitlines()[0]
