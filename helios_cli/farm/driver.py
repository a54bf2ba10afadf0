"""The driver of a farm: gives segments of films to workers, hears what becomes of them, and joins finished films.

A segment that fails, or whose worker ends or hangs, goes to another worker and continues after its last safe chunk,
ATTEMPTS times in all; then its film fails, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from helios_cli.engine.events import ChunkDone, Event, Notice, SegmentDone, SegmentStarted, WorkerLost, WorkerReady
from helios_cli.errors import HeliosError, InputError, Interrupted, MachineError, PictureError
from helios_cli.farm.film import FarmFilm, Kind, Missing, differences
from helios_cli.farm.joins import Joins
from helios_cli.farm.pool import Message, Pool
from helios_cli.farm.task import Task, to_plain
from helios_cli.farm.worker_state import Assignment, WorkerState
from helios_cli.film.claims import BEAT_SECONDS
from helios_cli.film.jobs import Job
from helios_cli.film.parts import DoneSegment
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, Segment
from helios_cli.units import counted
from helios_cli.weights.names import NAMES

FilmEvent = tuple[Job | None, Event | HeliosError]

Heard = Iterator[tuple[FarmFilm | None, Event | HeliosError]]
"""Events, each with the film that it is about, and errors that ended films."""

ATTEMPTS = 3
"""The number of times that a segment is tried, and that a worker is started which ends before it finishes a chunk."""

WAIT_SECONDS = 0.5
"""The longest time between two looks at what is to be done."""

POLL_SECONDS = 2.0
"""Time between two looks at what other processes have done."""

FINAL = (InputError, PictureError)
"""Errors that every other worker would raise too."""


class Driver:
    """Renders films by the workers of `pool`. `run` yields events; `stopped` says what an interruption leaves.

    Args:
        stop: end with the first film that fails.
    """

    def __init__(self, films: Sequence[FarmFilm], pool: Pool, options: RenderOptions, *, stop: bool = False) -> None:
        self._films, self._pool, self._options, self._stop = films, pool, options, stop
        self._open = list(films)  # films that have not ended
        self._queue = _longest_first(films)
        self._again: dict[WorkerState | FarmFilm, float] = {}  # when to try again what other processes had claimed
        self._workers = {name: WorkerState(name) for name in pool.names}
        self._joins = Joins()
        self._said: set[tuple[FarmFilm | None, str]] = set()
        self._beaten = self._polled = time.monotonic()

    def run(self) -> Generator[FilmEvent, None, None]:
        """Render the films. An error of a film comes as an event; one that leaves no worker is raised."""
        try:
            while self._open:
                for film, event in self._step():
                    if self._stop and isinstance(event, HeliosError):
                        raise event
                    yield film.job if film else None, event
                if any(film.has_ended for film in self._open):
                    self._open = [film for film in self._open if not film.has_ended]
                    self._queue = [(film, segment) for film, segment in self._queue if not film.has_ended]
        finally:
            self._pool.close()
            for film in self._films:
                film.parts.claims.release_all()
                if not self._options.share:
                    film.leave()

    def stopped(self) -> Interrupted:
        """Return the error of a command that is interrupted: how much of its films is safe."""
        safe = [
            f"{film.safe_chunks} of the {counted(len(film.plan.chunks), 'chunk')} of {film.job.output}"
            for film in self._films
            if not film.has_ended and film.safe_chunks
        ]
        what = f"stopped: {' and '.join(safe[:3])} are safe" if safe else "stopped before a chunk was done"
        if len(safe) > 3:
            what = f"stopped: the chunks of {counted(len(safe), 'unfinished film')} are safe"
        return Interrupted(what, hint="run the same command again to continue from there")

    def _step(self) -> Heard:
        yield from self._poll()
        for worker in self._workers.values():
            if worker.is_idle and self._may_try(worker):
                yield from self._give_work(worker)
        self._start_joins()
        for name, message in self._pool.receive(WAIT_SECONDS if self._joins.are_quiet else 0.0):
            yield from self._hear(self._workers[name], message)
        yield from self._hear_joins()
        yield from self._renew_hung()
        yield from self._end_hopeless()

    # Work for workers

    def _give_work(self, worker: WorkerState) -> Heard:
        """Give an idle worker the longest segment that it may render, of the model that it has loaded if there is one.

        Before the first segment of a model the worker has to identify itself.
        """
        for film, segment in self._queue_of(worker.model):
            if not film.is_ready(segment):  # also by what was begun in this loop
                continue
            kind = worker.kinds.get(_key(film))
            if kind is None:
                self._identify(worker, film)
                return
            if isinstance(kind, HeliosError) or not film.accepts(kind):
                continue
            if film.kind is None:
                yield from self._begin(film, kind, worker)
                if film.has_ended or not film.accepts(kind) or segment.index in film.done:
                    continue
            if self._options.share and not film.parts.claims.take(_claim(segment)):
                continue
            yield from self._look_again(film, segment)
            if film.has_ended or film.kind is None or segment.index in film.done:
                self._release(film, segment)
                continue
            self._assign(worker, film, segment)
            started = SegmentStarted(segment.index, len(film.segments), segment.first_chunk, len(segment.plan.chunks))
            yield film, worker.said(started)
            return
        self._try_later(worker)

    def _queue_of(self, model: str) -> Iterator[tuple[FarmFilm, Segment]]:
        """Yield all segments of films that have not ended, those of the model first."""
        queue = self._queue
        yield from (one for one in queue if one[0].model.name == model)
        yield from (one for one in queue if one[0].model.name != model)

    def _identify(self, worker: WorkerState, film: FarmFilm) -> None:
        """Ask a worker what it would compute the film by."""
        worker.asked = _key(film)
        worker.begin(True)
        options = to_plain(RenderOptions, _task_options(film))
        size, guidance = list(film.plan.size), film.plan.guidance
        asked = {"model": _model_name(film), "options": options, "size": size, "guidance": guidance}
        self._pool.send(worker.name, {"identify": asked})

    def _begin(self, film: FarmFilm, kind: Kind, worker: WorkerState) -> Heard:
        try:
            for event in film.begin(kind, worker.device):
                yield film, event
        except HeliosError as error:
            yield film, _fail(film, error)

    def _look_again(self, film: FarmFilm, segment: Segment) -> Heard:
        """After a claim, look at what the process has done that had it before."""
        if self._options.share:
            there = film.parts.kind() is not None
            yield from ((film, event) for event in (film.take_done(segment) if there else film.without_parts()))

    def _assign(self, worker: WorkerState, film: FarmFilm, segment: Segment) -> None:
        film.running[segment.index], worker.model = worker.name, film.model.name
        worker.begin(Assignment(film, segment, time.monotonic()))
        task = Task(_absolute(segment.plan), _task_options(film), film.target.kind)
        sees = all(self._pool.sees(worker.name, path) for path in (film.parts.folder.absolute(), *task.pictures))
        self._pool.send(worker.name, (task if sees else film.self_contained(task, segment)).to_message())

    # What workers say

    def _hear(self, worker: WorkerState, message: Message) -> Heard:
        worker.heard, task = time.monotonic(), worker.task
        match message:
            case {"waiting": reason}:
                yield from self._pass_on(worker, None, Notice(reason))
            case {"hello": {"host": host, "pid": pid}}:
                worker.host, worker.pid, worker.busy = host, pid, None
                yield None, worker.said(WorkerReady())
            case {"identity": {"kind": kind, "device": device}}:
                worker.kinds[worker.asked], worker.device, worker.busy = kind, device, None
            case {"event": _}:
                yield from self._pass_on(worker, task, Event.from_dict(message))
            case {"chunk": chunk} if task:
                task.film.parts.chunks.put(**chunk)
            case {"done": done} if task:
                yield from self._hear_done(worker, task, done)
            case {"failed": failed}:
                yield from self._hear_failed(worker, task, failed)
            case {"lost": reason}:
                yield from self._hear_lost(worker, reason)

    def _pass_on(self, worker: WorkerState, task: Assignment | None, event: Event) -> Heard:
        """Pass on an event of a worker. A notice is shown once, though every worker has it."""
        film = task.film if task else None
        if isinstance(event, Notice):
            if (film, event.message) in self._said:
                return
            self._said.add((film, event.message))
        for one in task.film.translate(task.segment, event) if task else [event]:
            if isinstance(one, ChunkDone):
                worker.losses = 0
            yield film, worker.said(one)

    def _hear_done(self, worker: WorkerState, task: Assignment, done: dict[str, Any]) -> Heard:
        film, segment = task.film, task.segment
        worker.busy, worker.losses = None, 0
        film.running.pop(segment.index, None)
        try:
            if film.has_ended:  # it failed, or another process finished it: the chunks are of no use to this command
                return
            film.finish_segment(segment, DoneSegment.of(done))
        except HeliosError as error:
            yield film, _fail(film, error)
            return
        finally:
            self._release(film, segment)
        yield film, worker.said(SegmentDone(segment.index, len(film.segments), time.monotonic() - task.began))

    def _hear_failed(self, worker: WorkerState, task: Assignment | None, failed: dict[str, Any]) -> Heard:
        error = HeliosError.from_dict(failed)
        if failed.get("log"):
            error.add_note(failed["log"])
        worker.busy = None
        if task:
            yield from self._try_again(task, error)
        else:
            worker.kinds[worker.asked] = error
            yield None, worker.said(Notice(f"worker {worker.name} on {worker.host} cannot render: {error.message}"))

    def _hear_lost(self, worker: WorkerState, reason: str) -> Heard:
        task = worker.task
        yield (task.film if task else None), worker.said(WorkerLost(reason))
        worker.losses += 1
        worker.busy, worker.model, worker.pid = True, "", None
        worker.kinds.clear()
        if worker.losses < ATTEMPTS:
            self._pool.renew(worker.name)
        else:
            self._pool.end(worker.name)
            worker.busy = None
            message = f"worker {worker.name} ended {ATTEMPTS} times before it finished a chunk; the last time, {reason}"
            worker.retired = MachineError(message, hint="set HELIOS_DEBUG=1 to see its output")
            if any(other.retired is None for other in self._workers.values()):  # else it is the error of the command
                yield None, Notice(f"{message}; it is not started again")
        if task:
            yield from self._try_again(task, MachineError(f"its worker was lost: {reason}"), is_known=True)

    def _try_again(self, task: Assignment, error: HeliosError, *, is_known: bool = False) -> Heard:
        """Let another worker continue the segment, unless it was tried often enough.

        `is_known`: an event has named the error before.
        """
        film, index = task.film, task.segment.index
        what = f"{film.job.film.name}: segment {index + 1}"
        film.running.pop(index, None)
        self._release(film, task.segment)
        if film.has_ended:
            return
        film.attempts[index] += 1
        if isinstance(error, FINAL):
            yield film, _fail(film, error)
        elif film.attempts[index] >= ATTEMPTS:
            message = f"{what} failed {ATTEMPTS} times, at last: {error.message}"
            yield film, _fail(film, HeliosError(message, hint=error.hint))
        else:
            yield film, Notice(f"{what} is tried again" + ("" if is_known else f": {error.message}"))

    def _renew_hung(self) -> Heard:
        limit = self._options.worker_timeout
        for worker in self._workers.values():
            if worker.busy and worker.retired is None and time.monotonic() - worker.heard > limit:
                worker.heard = time.monotonic()
                yield from self._hear_lost(worker, f"it sent no event for {limit:.0f} s (--worker-timeout)")

    def _end_hopeless(self) -> Heard:
        """Fail the films that no worker can render. Raises the error of a worker if none is left."""
        workers = [worker for worker in self._workers.values() if worker.retired is None]
        if not workers:
            raise next(worker.retired for worker in self._workers.values() if worker.retired is not None)
        if all(worker.busy for worker in workers):
            return
        kinds: dict[tuple, list[Kind | HeliosError | None]] = {}
        for film in self._open:
            if film.has_ended or film.running or film.is_rendered:
                continue
            if (key := _key(film)) not in kinds:
                kinds[key] = [worker.kinds.get(key) for worker in workers]
            if error := _hopeless(film, kinds[key]):
                yield film, _fail(film, error)

    # Films whose chunks are all there

    def _start_joins(self) -> None:
        for film in self._open:
            if self._joins.are_full:
                return
            is_whole = film.done and film.is_rendered and not film.has_ended
            if is_whole and film not in self._joins and self._may_join(film):
                self._joins.start(film)

    def _may_join(self, film: FarmFilm) -> bool:
        """Return whether no other process joins the film; it is claimed then."""
        if not self._options.share:
            return True
        if not self._may_try(film):
            return False
        if not film.parts.claims.take("film"):
            self._try_later(film)
            return False
        if film.parts.kind() is None:  # another process has joined it just before: `_poll` finds the film
            film.parts.claims.release("film")
            return False
        return True

    def _hear_joins(self) -> Heard:
        for film, what in self._joins.heard():
            if isinstance(what, Event):
                yield film, what
                continue
            if what is None:
                film.has_ended = True
            elif isinstance(what, Missing):
                yield from self._reopen(film, film.segments[what.segment])
            elif isinstance(what, HeliosError):
                yield film, _fail(film, what)
            else:
                raise what
            film.parts.claims.release_all()

    def _reopen(self, film: FarmFilm, segment: Segment) -> Heard:
        film.parts.reopen(segment.index)
        del film.done[segment.index]
        yield from self._try_again(Assignment(film, segment, 0.0), MachineError("its finished chunks are damaged"))

    # Other processes

    def _may_try(self, one: WorkerState | FarmFilm) -> bool:
        return time.monotonic() >= self._again.get(one, 0.0)

    def _try_later(self, one: WorkerState | FarmFilm) -> None:
        """Leave claims of other processes alone for a while: looking at them takes work for each message of workers."""
        if self._options.share:
            self._again[one] = time.monotonic() + WAIT_SECONDS / 2

    def _release(self, film: FarmFilm, segment: Segment) -> None:
        film.parts.claims.release(_claim(segment))

    def _poll(self) -> Heard:
        """Show other processes that this one lives, and look at what they have done."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            for film in self._open:
                film.parts.claims.beat()
        if not self._options.share or now - self._polled < POLL_SECONDS:
            return
        self._polled = now
        for film in self._open:
            if film.kind is None or film.has_ended or film in self._joins:
                continue
            if film.parts.kind() is None:
                yield from ((film, event) for event in film.without_parts())
                continue
            for segment in film.ready():
                yield from ((film, event) for event in film.take_done(segment))


def _longest_first(films: Sequence[FarmFilm]) -> list[tuple[FarmFilm, Segment]]:
    """Return all segments of the films: the long ones, which may not be the last, before the short ones."""
    found = [(film, segment) for film in films for segment in film.segments]
    return sorted(found, key=lambda one: -len(one[1].plan.chunks))


def _claim(segment: Segment) -> str:
    return f"segment-{segment.index}"


def _fail(film: FarmFilm, error: HeliosError) -> HeliosError:
    """End a film. Workers that still render segments of it finish those: their chunks stay for the next run."""
    film.has_ended = True
    return error


def _task_options(film: FarmFilm) -> RenderOptions:
    """Return the options that a worker needs: how to compute and to encode."""
    options = replace(film.job.options, repeats=None, export=(), check=False, workers=None, cluster=None, share=False)
    return replace(options, model=_model_name(film), output=str(film.target.path.absolute()))


def _model_name(film: FarmFilm) -> str:
    """Return the model's name for a worker in another folder, and perhaps on another machine."""
    folder = film.model.source.folder
    return film.model.name if folder is None or film.model.name in NAMES else str(folder.absolute())


def _absolute(plan: Plan) -> Plan:
    """Return the plan with pictures and clips for a worker in another folder."""
    chunks = [
        replace(chunk, image=chunk.image and chunk.image.absolute(), video=chunk.video and chunk.video.absolute())
        for chunk in plan.chunks
    ]
    return replace(plan, chunks=tuple(chunks))


def _key(film: FarmFilm) -> tuple:
    options = film.job.options
    return film.model.name, options.revision, options.lora, film.plan.size, film.plan.guidance


def _hopeless(film: FarmFilm, kinds: Sequence[Kind | HeliosError | None]) -> HeliosError | None:
    """Return why none of the workers, which compute by `kinds`, can render the film; None if one can, or may."""
    if None in kinds:
        return None
    refused = [kind for kind in kinds if isinstance(kind, HeliosError)]
    others = [kind for kind in kinds if kind is not None and not isinstance(kind, HeliosError)]
    if not others:
        return refused[0]
    if film.kind is None or any(film.accepts(kind) for kind in others):
        return None
    return InputError(
        f"{film.job.output} was begun by workers of another kind: {differences(film.kind, others[0])}",
        hint="render the rest with workers like those, add --mixed, or start again with --force",
    )
