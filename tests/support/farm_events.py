"""The events of a farm that does not exist: films, segments and workers that interleave as those of a real one do."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    PhaseStarted,
    SegmentDone,
    SegmentStarted,
    StepDone,
    Worker,
    WorkerLost,
    WorkerReady,
)
from helios_cli.errors import HeliosError, MachineError

FilmEvent = tuple[str | None, Event | HeliosError]

STAGES, STEPS = 3, 2


@dataclass(frozen=True)
class Farm:
    """Workers and films to be. A worker takes the first segment that waits.

    Attributes:
        films: the chunks of each segment of each film, by the film's name.
        kills: (seconds, number of the worker): it is lost then, and comes back; its segment begins again elsewhere.
        are_safe: of a lost segment the chunks that were done are reused.
        failing: films that fail when the first of their segments is done.
    """

    films: Mapping[str, Sequence[int]]
    workers: int = 4
    chunk_seconds: float = 10.0
    kills: Sequence[tuple[float, int]] = ()
    are_safe: bool = True
    failing: frozenset[str] = frozenset()
    hosts: int = 1
    seed: int = 0

    def worker(self, number: int) -> Worker:
        return Worker(f"w{number + 1}", f"gpu-node-{number % self.hosts + 1}", f"cuda:{number // self.hosts}")


@dataclass
class _Worker:
    number: int
    now: float
    turns: Iterator[tuple[float, list[FilmEvent]]]
    segment: tuple[str, int] | None = None
    lives: int = 0
    is_loaded: bool = False


@dataclass
class _Film:
    segments: Sequence[int]
    has_begun: bool = False
    has_ended: bool = False
    chunks: set[int] = field(default_factory=set)
    finished: set[int] = field(default_factory=set)


def frames_of(segments: Sequence[int]) -> int:
    """Return the frames of a film; the last chunk of a segment has 20."""
    return sum(33 * (chunks - 1) + 20 for chunks in segments)


def film_started(name: str, segments: Sequence[int]) -> FilmStarted:
    """Return the first event of a film."""
    chunks, steps = sum(segments), sum(segments) * STAGES * STEPS
    title, output = name.title(), f"out/{name}.mp4"
    frames = frames_of(segments)
    return FilmStarted(title, output, "tiny", "cpu", "float32", 640, 384, 24.0, frames, chunks, STAGES, steps)


class FarmEvents:
    """Yields (seconds, film, event) of a farm, in the order of time."""

    def __init__(self, farm: Farm) -> None:
        self.farm = farm
        self.rng = random.Random(farm.seed)
        self.films = {name: _Film(segments) for name, segments in farm.films.items()}
        self.waiting = deque((name, index) for name, film in farm.films.items() for index in range(len(film)))

    def __iter__(self) -> Iterator[tuple[float, str | None, Event | HeliosError]]:
        workers = [_Worker(number, 0.3 * number, iter(())) for number in range(self.farm.workers)]
        for worker in workers:
            worker.turns = self._turns(worker)
        kills = deque(sorted(self.farm.kills))
        while not all(film.has_ended for film in self.films.values()):
            worker = min(workers, key=lambda worker: worker.now)
            if kills and kills[0][0] <= worker.now:
                seconds, number = kills.popleft()
                yield seconds, *self._lose(workers[number], seconds)
                continue
            now, (pause, events) = worker.now, next(worker.turns)
            for film_event in events:
                yield now, *self._signed(worker, *film_event)
            worker.now += pause

    def _lose(self, worker: _Worker, seconds: float) -> FilmEvent:
        film = None
        if worker.segment is not None:
            film = worker.segment[0]
            self.waiting.appendleft(worker.segment)
        lost = self._signed(worker, film, WorkerLost("killed by signal 9"))
        worker.segment, worker.is_loaded, worker.now = None, False, seconds + 3
        worker.lives += 1
        worker.turns = self._turns(worker)
        return lost

    def _signed(self, worker: _Worker, film: str | None, event: Event | HeliosError) -> FilmEvent:
        if isinstance(event, HeliosError | FilmStarted | FilmDone):
            return film, event
        return film, replace(
            event, worker=self.farm.worker(worker.number), pid=1000 + worker.number + 100 * worker.lives
        )

    def _turns(self, worker: _Worker) -> Iterator[tuple[float, list[FilmEvent]]]:
        """Yield the seconds of each thing that a worker does, and the events as it begins."""
        yield 1.0, [(None, WorkerReady())]
        while True:
            while self.waiting and self.films[self.waiting[0][0]].has_ended:
                self.waiting.popleft()
            if not self.waiting:
                yield 1.0, []
                continue
            worker.segment = self.waiting.popleft()
            yield from self._segment(worker, *worker.segment)
            worker.segment = None

    def _segment(self, worker: _Worker, name: str, index: int) -> Iterator[tuple[float, list[FilmEvent]]]:
        film, begun = self.films[name], worker.now
        chunks, first = sum(film.segments), sum(film.segments[:index])
        events: list[FilmEvent] = [] if film.has_begun else [(name, film_started(name, film.segments))]
        film.has_begun = True
        events.append((name, SegmentStarted(index, len(film.segments), first, film.segments[index])))
        if not worker.is_loaded:
            yield 0.3 * self.farm.chunk_seconds, [*events, (name, PhaseStarted("load"))]
            worker.is_loaded, events = True, []
        for chunk in range(first, first + film.segments[index]):
            if chunk in film.chunks:
                events.append((name, ChunksReused(chunk, chunks, 33 * (chunk + 1), 1, "cache")))
                continue
            seconds = self.farm.chunk_seconds * self.rng.uniform(0.8, 1.25)
            turn = seconds / (STAGES * STEPS + 1)
            yield turn, [*events, (name, PhaseStarted("denoise"))]
            for stage in range(STAGES):
                for step in range(STEPS):
                    is_last = (stage, step) == (STAGES - 1, STEPS - 1)
                    decode = [(name, PhaseStarted("decode"))] if is_last else []
                    yield turn, [(name, StepDone(chunk, stage, step, STEPS)), *decode]
            events = [(name, ChunkDone(chunk, chunks, 33 * (chunk + 1), seconds))]
            film.chunks |= {chunk} if self.farm.are_safe else set()
        film.finished.add(index)
        events.append((name, SegmentDone(index, len(film.segments), worker.now - begun)))
        yield 0.05, [*events, *self._end(name, film, worker.now)]

    def _end(self, name: str, film: _Film, now: float) -> list[FilmEvent]:
        if name in self.farm.failing and not film.has_ended:
            film.has_ended = True
            return [(name, MachineError("out of disk space", hint="make room"))]
        if film.has_ended or len(film.finished) < len(film.segments):
            return []
        film.has_ended = True
        frames = frames_of(film.segments)
        return [(name, FilmDone(f"out/{name}.mp4", frames, now, frames / max(now, 1.0), 10**9, None))]
