"""The progress of films that several workers render, in numbers, from the events of all of them.

Films, segments and workers interleave, chunks are done out of order, and a segment whose worker was lost begins again
on another one. So the progress of a film is the set of its chunks that are done, however often each was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    PhaseStarted,
    SegmentDone,
    SegmentStarted,
    Worker,
    WorkerLost,
    WorkerReady,
)
from helios_cli.errors import HeliosError
from helios_cli.track import Place

BETWEEN_SEGMENTS = 3.0
"""The seconds for which a worker without a segment is not yet one that has nothing to do."""


@dataclass(frozen=True, kw_only=True)
class WorkerTrack(Place):
    """A worker at one moment, and its place in the film that it renders.

    Attributes:
        film, segment: what it renders; None between two segments.
        stages: those of a chunk of the film.
        since: when its state or phase began.
        heard: when its last event came.
    """

    worker: Worker
    heard: float
    state: Literal["starting", "waiting", "rendering", "lost"] = "starting"
    film: str | None = None
    segment: SegmentStarted | None = None
    stages: int | None = None

    def after(self, event: Event, now: float, film: str | None, started: FilmStarted | None) -> WorkerTrack:
        """Return the worker after an `event` at `now`, of `film`, which began with `started`."""
        track = replace(self, worker=event.worker or self.worker, heard=now)
        if isinstance(event, WorkerReady | SegmentDone):
            return track._without_work("waiting", now)
        if isinstance(event, WorkerLost):
            return track._without_work("lost", now)
        if isinstance(event, SegmentStarted):
            track = track._without_work("rendering", now)
            stages = started.stages if started else None
            return replace(track, film=film, segment=event, stages=stages)._in_chunk(event.chunk, now)
        frames = started.frames / started.chunks if started and started.frames and started.chunks else 0.0
        return track.moved(event, now, frames)

    def _without_work(self, state: Literal["waiting", "rendering", "lost"], now: float) -> WorkerTrack:
        return replace(self, state=state, film=None, segment=None, phase=None, step=None, since=now)

    def is_busy(self, now: float) -> bool:
        """Return whether it renders; the moment between two segments counts, so that the speed of all does not jump."""
        return self.segment is not None or (self.state == "waiting" and now - self.since < BETWEEN_SEGMENTS)

    @property
    def number(self) -> int:
        """The number in its segment, from 1, of the chunk that it began last."""
        assert self.segment is not None
        return min(self.segment.chunks, max(1, self.chunk - self.segment.chunk + 1))

    def seconds_in_chunk(self, now: float, chunk_seconds: float) -> float:
        """Return the seconds that it worked on its chunk, at most `chunk_seconds`; 0 if it has none."""
        return min(chunk_seconds, now - self.chunk_since) if self.segment is not None else 0.0

    def seconds_left(self, now: float, mean: float) -> float:
        """Return the estimated seconds to the end of its segment; `mean` is a chunk's time on other workers."""
        if self.segment is None:
            return 0.0
        seconds = self.recent.chunk_seconds or mean
        chunks = self.segment.chunk + self.segment.chunks - self.chunk
        return max(0.0, chunks * seconds - self.seconds_in_chunk(now, seconds))


@dataclass(frozen=True)
class Totals:
    """All films at one moment.

    Attributes:
        films: those of the command; `films_done` and `films_failed` are the ones that have ended.
        finishing: films whose chunks are all there, and are being joined.
        segments: of the films that have begun; None before any has.
        chunks, frames: those of all films; None before any has begun. Unless `is_exact` they are estimates: the films
            that have not begun count like the mean of the others. Of a failed film what is done counts, and no more.
        frames_rendered: those of `frames_done` that are not from earlier renders.
        frames_per_second: the sum of the recent speeds of the workers that render; None before the first chunk.
        seconds_left: by the recent time of a chunk and the number of workers; None before the first chunk.
        workers: those that are not lost. `losses`: how often one was lost.
    """

    films: int
    films_done: int
    films_failed: int
    finishing: int
    segments_done: int
    segments: int | None
    chunks_done: int
    chunks: int | None
    frames_done: int
    frames: int | None
    frames_rendered: int
    is_exact: bool
    frames_per_second: float | None
    seconds_left: float | None
    workers: int
    lost: int
    losses: int

    @property
    def are_over(self) -> bool:
        """Return whether all films have ended."""
        return self.films_done + self.films_failed == self.films

    @property
    def fraction(self) -> float | None:
        """The share of all chunks that is done, 0 to 1."""
        return None if self.chunks is None else min(1.0, self.chunks_done / max(1, self.chunks))


@dataclass
class _Film:
    """A film: its chunks and segments that are done, by index, and its end; `rendered` chunks were not reused."""

    started: FilmStarted | None = None
    chunks: set[int] = field(default_factory=set)
    rendered: set[int] = field(default_factory=set)
    segments: set[int] = field(default_factory=set)
    num_segments: int | None = None
    is_finishing: bool = False
    end: FilmDone | HeliosError | None = None

    def follow(self, event: Event | HeliosError) -> None:
        if isinstance(event, FilmStarted):
            self.started = event
        elif isinstance(event, PhaseStarted):
            self.is_finishing = event.phase in ("after", "finish")
        elif isinstance(event, SegmentStarted | SegmentDone):
            self.num_segments = event.segments
            self.segments |= {event.segment} if isinstance(event, SegmentDone) else set()
        elif isinstance(event, ChunkDone):
            self.chunks.add(event.chunk)
            self.rendered.add(event.chunk)
        elif isinstance(event, ChunksReused):
            self.chunks.update(range(event.chunk + 1 - event.count, event.chunk + 1))
        elif isinstance(event, FilmDone | HeliosError):
            self.end = event

    @property
    def counts_nothing(self) -> bool:
        """Return whether the film was finished, or failed, without being begun."""
        return self.end is not None and self.started is None

    @property
    def all_chunks(self) -> int:
        return 0 if self.started is None else self.started.chunks or 0

    @property
    def chunks_done(self) -> int:
        """The chunks that are done; all of them in a film that is."""
        if self.counts_nothing:
            return 0
        return self.all_chunks if isinstance(self.end, FilmDone) else min(len(self.chunks), self.all_chunks)

    def frames_of(self, chunks: int) -> int:
        """Return the frames of so many chunks. Which of them are shorter, before a cut, is not known."""
        if self.started is None or not self.all_chunks:
            return 0
        return round((self.started.frames or 0) * chunks / self.all_chunks)


class FarmTrack:
    """The progress of `films`, by name, and of their workers. `clock` returns seconds.

    One thread follows events, and any thread may take `totals` and `workers`.

    Attributes:
        began, ended: when the command began, and when the last film ended, in seconds of the clock.
    """

    def __init__(self, films: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.began = self.ended = clock()
        self._films = {name: _Film() for name in films}
        self._workers: dict[str, WorkerTrack] = {}
        self._losses = 0
        self._lock = threading.Lock()

    def follow(self, film: str | None, event: Event | HeliosError) -> None:
        """Follow an event, or the error that ended a film; `film` is None for what is about all films."""
        with self._lock:
            if film is not None:
                self._films[film].follow(event)
                self.ended = self.clock() if isinstance(event, FilmDone | HeliosError) else self.ended
            if isinstance(event, Event) and event.worker is not None:
                self._follow_worker(event.worker, film, event)

    def _follow_worker(self, worker: Worker, film: str | None, event: Event) -> None:
        now = self.clock()
        before = self._workers.get(worker.name) or WorkerTrack(worker=worker, since=now, chunk_since=now, heard=now)
        started = None if film is None else self._films[film].started
        self._workers[worker.name] = before.after(event, now, film, started)
        self._losses += isinstance(event, WorkerLost)

    def film(self, name: str) -> FilmStarted | None:
        """Return the first event of a film; None before it has begun."""
        return self._films[name].started

    def chunks_of(self, name: str) -> tuple[int, int]:
        """Return the chunks of a film that are done, and all of them."""
        film = self._films[name]
        return film.chunks_done, film.all_chunks

    def worker(self, name: str) -> WorkerTrack | None:
        return self._workers.get(name)

    @property
    def films(self) -> tuple[str, ...]:
        return tuple(self._films)

    @property
    def workers(self) -> tuple[WorkerTrack, ...]:
        """The workers, in the order in which they were first heard of."""
        with self._lock:
            return tuple(self._workers.values())

    def totals(self) -> Totals:
        with self._lock:
            films, workers = tuple(self._films.values()), tuple(self._workers.values())
            return _totals(films, workers, self._losses, self.clock())


def _totals(films: Sequence[_Film], workers: Sequence[WorkerTrack], losses: int, now: float) -> Totals:
    begun = [film for film in films if film.started is not None]
    waiting = sum(film.started is None and film.end is None for film in films)
    expected = [film.chunks_done if isinstance(film.end, HeliosError) else film.all_chunks for film in begun]
    frames = [film.frames_of(chunks) for film, chunks in zip(begun, expected, strict=True)]
    chunks_done = sum(film.chunks_done for film in begun)
    chunks = _with_the_rest(expected, [film.all_chunks for film in begun], waiting)
    live = [worker for worker in workers if worker.state != "lost"]
    speeds = [worker.recent.frames_per_second for worker in live if worker.is_busy(now)]
    known_segments = [film.num_segments for film in films if film.num_segments is not None]
    return Totals(
        films=len(films),
        films_done=sum(isinstance(film.end, FilmDone) for film in films),
        films_failed=sum(isinstance(film.end, HeliosError) for film in films),
        finishing=sum(film.is_finishing and film.end is None for film in films),
        segments_done=sum(len(film.segments) for film in films),
        segments=sum(known_segments) if known_segments else None,
        chunks_done=chunks_done,
        chunks=chunks,
        frames_done=sum(film.frames_of(film.chunks_done) for film in begun),
        frames=_with_the_rest(frames, [film.frames_of(film.all_chunks) for film in begun], waiting),
        frames_rendered=sum(film.frames_of(min(len(film.rendered), film.all_chunks)) for film in begun),
        is_exact=waiting == 0,
        frames_per_second=sum(filter(None, speeds)) or None,
        seconds_left=None if chunks is None else _seconds_left(chunks - chunks_done, workers, live, now),
        workers=len(live),
        lost=len(workers) - len(live),
        losses=losses,
    )


def _with_the_rest(expected: Sequence[int], whole: Sequence[int], waiting: int) -> int | None:
    """Return the sum of what is `expected`, and for each `waiting` film the mean of `whole` ones; None without any."""
    if not whole:
        return None
    return sum(expected) + round(waiting * sum(whole) / len(whole))


def _seconds_left(chunks: int, workers: Sequence[WorkerTrack], live: Sequence[WorkerTrack], now: float) -> float | None:
    """Return the seconds that the live workers need for so many chunks, at least those of the longest segment begun."""
    if chunks <= 0:
        return 0.0
    times = [worker.recent.chunk_seconds for worker in workers if worker.recent.chunk_seconds is not None]
    if not times or not live:
        return None
    mean = sum(times) / len(times)
    together = (chunks * mean - sum(worker.seconds_in_chunk(now, mean) for worker in live)) / len(live)
    return max(0.0, together, *(worker.seconds_left(now, mean) for worker in live))
