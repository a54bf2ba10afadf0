"""The progress of one film in numbers, from the engine's events (`engine/events.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    FramesDone,
    PhaseStarted,
    Playback,
    StepDone,
)
from helios_cli.units import format_duration, format_figure

PHASES = {
    "load": "loading the model",
    "text": "reading the prompts",
    "conditioning": "encoding the start",
    "denoise": "denoising",
    "decode": "decoding",
    "after": "after the render: program and filters",
    "finish": "finishing the file",
}

WAITING = {"waiting": "waiting for the viewer", "paused": "paused"}
"""Texts in place of stage and step while a live film waits."""

RECENT_CHUNKS = 8
"""Chunks whose mean time predicts the rest: enough to smooth out a hiccup, few enough to follow a lasting change."""


@dataclass(frozen=True)
class RecentChunks:
    """The (frames, seconds) of the chunks that were done last, and what they say about the next ones."""

    chunks: tuple[tuple[float, float], ...] = ()
    is_warm: bool = False

    def after(self, frames: float, seconds: float) -> RecentChunks:
        """Return the recent chunks once another one is done.

        The first chunk is forgotten then: it is slower, since it has more steps and the device is cold.
        """
        known = () if self.chunks and not self.is_warm else self.chunks
        return RecentChunks((*known, (frames, seconds))[-RECENT_CHUNKS:], self.is_warm or bool(self.chunks))

    @property
    def frames_per_second(self) -> float | None:
        """The speed; None before the first chunk is done."""
        seconds = sum(seconds for _, seconds in self.chunks)
        return sum(frames for frames, _ in self.chunks) / seconds if seconds > 0 else None

    @property
    def chunk_seconds(self) -> float | None:
        """The mean time of a chunk; None before the first is done."""
        return sum(seconds for _, seconds in self.chunks) / len(self.chunks) if self.chunks else None


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a render: its phase, the chunk that it began last, from 0, and the last step of that chunk.

    While a chunk is denoised the previous one may still be decoded. A place is replaced, never mutated: live displays
    read it from threads of their own.

    Attributes:
        since, chunk_since: when the phase and the chunk began, in seconds of the clock.
        steps: the number of steps of the chunk that are done.
    """

    since: float
    chunk_since: float
    phase: str | None = None
    chunk: int = 0
    step: StepDone | None = None
    steps: int = 0
    recent: RecentChunks = field(default_factory=RecentChunks)

    def moved(self, event: Event, now: float, frames: float) -> Self:
        """Return the place after an `event` at `now`; a chunk that it ends has so many `frames`."""
        if isinstance(event, PhaseStarted):
            place = replace(self, phase=event.phase, since=now)
            following = self.chunk if self.step is None else self.step.chunk + 1
            return place._in_chunk(following, now) if event.phase == "denoise" else place
        if isinstance(event, StepDone):
            place = self if event.chunk == self.chunk else self._in_chunk(event.chunk, now)
            return replace(place, phase="denoise", step=event, steps=place.steps + 1)
        if isinstance(event, ChunksReused):
            return self._in_chunk(event.chunk + 1, now)
        if isinstance(event, ChunkDone):
            place = replace(self, recent=self.recent.after(frames, event.seconds), phase="denoise")
            is_last = self.step is None or self.step.chunk == event.chunk
            return place._in_chunk(event.chunk + 1, now) if is_last else place
        return self

    def _in_chunk(self, chunk: int, now: float) -> Self:
        return replace(self, chunk=chunk, step=None, steps=0, chunk_since=now)


class Track:
    """The progress of one film. `clock` returns seconds, to time the chunk in flight.

    Phases may begin before the film is known; only `place` is meaningful then.
    """

    def __init__(self, film: FilmStarted | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.film = film
        self.clock = clock
        self.place = Place(since=clock(), chunk_since=clock(), phase="denoise" if film else None)
        self.playback: Playback | None = None
        self.frames_done = 0
        self.behind: FramesDone | None = None
        self.steps_per_chunk = max(1.0, film.steps / film.chunks) if film and film.steps and film.chunks else 1.0

    def has_begun(self, done: FilmDone) -> bool:
        """Return whether this film is the one that is done; a film that was finished before never begins."""
        return self.film is not None and self.film.output == done.output

    def follow(self, event: Event) -> None:
        if isinstance(event, FramesDone):
            self.behind = event
        elif isinstance(event, Playback):
            self.playback = event
        elif isinstance(event, ChunkDone):
            self.steps_per_chunk = max(1, self.place.steps)
        frames = event.frames if isinstance(event, ChunkDone | ChunksReused) else self.frames_done
        self.place = self.place.moved(event, self.clock(), frames - self.frames_done)
        self.frames_done = frames

    @property
    def known(self) -> FilmStarted:
        """The film; only phases come before it is known."""
        assert self.film is not None
        return self.film

    @property
    def fraction(self) -> float | None:
        """The share of the film's work that is done, 0 to 1. Decoding a chunk counts as one more step.

        None, like `seconds_left`, for a film of unknown length.
        """
        if self.known.chunks is None:
            return None
        in_chunk = min(self.place.steps, self.steps_per_chunk) / (self.steps_per_chunk + 1)
        return min(1.0, (self.place.chunk + in_chunk) / self.known.chunks)

    @property
    def frames_per_second(self) -> float | None:
        """The speed over the recent chunks; None before the first is done."""
        return self.place.recent.frames_per_second

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left, by the mean of the recent chunks; None before the first is done."""
        chunk_seconds = self.place.recent.chunk_seconds
        if chunk_seconds is None or self.known.chunks is None:
            return None
        chunks_left = self.known.chunks - self.place.chunk
        if chunks_left == 0:
            return 0.0
        return max(0.0, chunk_seconds - (self.clock() - self.place.chunk_since)) + chunk_seconds * (chunks_left - 1)

    @property
    def place_text(self) -> str:
        """The chunk and, during denoising, stage and step; all counted from 1."""
        chunk = self.chunk_text(self.place.chunk + 1)
        if self.playback and self.playback.state in WAITING:
            return f"{chunk}, {WAITING[self.playback.state]}"
        phase, step = self.place.phase, self.place.step
        if phase != "denoise" or step is None:
            return f"{chunk}, {PHASES[phase or 'denoise']}"
        return f"{chunk}, stage {step.stage + 1}/{self.known.stages}, step {step.step + 1}/{step.steps_in_stage}"

    def chunk_text(self, number: int) -> str:
        chunks = self.known.chunks
        return f"chunk {number}" if chunks is None else f"chunk {min(number, chunks)}/{chunks}"

    @property
    def frames_text(self) -> str:
        return _of(self.frames_done, self.known.frames, "/") + " frames"

    @property
    def speed_text(self) -> str:
        return speed_text(self.frames_per_second)

    @property
    def left_text(self) -> str:
        """The time left, or "" for a film of unknown length."""
        return "" if self.known.chunks is None else left_text(self.seconds_left)

    @property
    def live_text(self) -> str:
        """The lead of a live film over whoever watches, and when a prompt would show; "" for other films."""
        if self.playback is None:
            return ""
        late = "late: " if self.playback.state == "late" else ""
        return f"{late}{self.playback.in_front:.1f} s ahead, prompts show in {self.playback.delay:.1f} s"

    @property
    def film_text(self) -> str:
        """The seconds of film that are done, and the total."""
        in_all = None if self.known.frames is None else f"{self.known.frames / self.known.fps:.1f}"
        return f"film {_of(f'{self.frames_done / self.known.fps:.1f}', in_all, ' of ')} s"


def speed_text(frames_per_second: float | None) -> str:
    return f"{format_figure(frames_per_second)} frames/s" if frames_per_second else ""


def took_text(seconds: float) -> str:
    """Format the time that a chunk or a phase took, to a tenth of a second."""
    return f"{seconds:.1f} s" if seconds >= 0.05 else "< 0.1 s"


def left_text(seconds: float | None) -> str:
    return "-:-- left" if seconds is None else f"{format_duration(seconds)} left"


def _of(done: object, in_all: object | None, between: str) -> str:
    """Format `3/9`, or `3` if the total is not known."""
    return f"{done}" if in_all is None else f"{done}{between}{in_all}"
