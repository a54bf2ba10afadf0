"""The progress of one film in numbers, from the engine's events (`engine/events.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

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
from helios_cli.units import format_duration

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


class Track:
    """The progress of one film. `clock` returns seconds, to time the chunk in flight.

    Phases may begin before the film is known; only `phase` and `phase_started` are meaningful then. While a chunk is
    denoised the previous one may still be decoded: `chunk` is the last one that was begun, from 0.
    """

    def __init__(self, film: FilmStarted | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.film = film
        self.clock = clock
        self.phase_started = self.chunk_started = clock()
        self.phase = "denoise" if film else None
        self.step: StepDone | None = None
        self.playback: Playback | None = None
        self.frames_done = self.chunk = 0
        self.behind: FramesDone | None = None
        self.steps_in_chunk = 0
        self.steps_per_chunk = max(1.0, film.steps / film.chunks) if film and film.steps and film.chunks else 1.0
        self.recent = RecentChunks()  # replaced, never mutated: the live display reads it from its own thread

    def has_begun(self, done: FilmDone) -> bool:
        """Return whether this film is the one that is done; a film that was finished before never begins."""
        return self.film is not None and self.film.output == done.output

    def follow(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            if event.phase != "denoise":
                self.phase_started = self.clock()
            else:
                self._begin(self.chunk if self.step is None else self.step.chunk + 1)
            self.phase = event.phase
        elif isinstance(event, StepDone):
            self.phase, self.step = "denoise", event
            self.steps_in_chunk += 1
        elif isinstance(event, FramesDone):
            self.behind = event
        elif isinstance(event, ChunksReused):
            self.frames_done, self.chunk = event.frames, event.chunk + 1
        elif isinstance(event, ChunkDone):
            self._follow_chunk(event)
        elif isinstance(event, Playback):
            self.playback = event

    def _begin(self, chunk: int) -> None:
        self.chunk, self.step, self.steps_in_chunk, self.chunk_started = chunk, None, 0, self.clock()

    def _follow_chunk(self, event: ChunkDone) -> None:
        self.recent = self.recent.after(event.frames - self.frames_done, event.seconds)
        self.frames_done = event.frames
        self.steps_per_chunk = max(1, self.steps_in_chunk)
        self.phase = "denoise"
        if self.step is None or self.step.chunk == event.chunk:
            self._begin(event.chunk + 1)

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
        in_chunk = min(self.steps_in_chunk, self.steps_per_chunk) / (self.steps_per_chunk + 1)
        return min(1.0, (self.chunk + in_chunk) / self.known.chunks)

    @property
    def frames_per_second(self) -> float | None:
        """The speed over the recent chunks; None before the first is done."""
        return self.recent.frames_per_second

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left, by the mean of the recent chunks; None before the first is done."""
        chunk_seconds = self.recent.chunk_seconds
        if chunk_seconds is None or self.known.chunks is None:
            return None
        chunks_left = self.known.chunks - self.chunk
        if chunks_left == 0:
            return 0.0
        return max(0.0, chunk_seconds - (self.clock() - self.chunk_started)) + chunk_seconds * (chunks_left - 1)

    @property
    def place_text(self) -> str:
        """The chunk and, during denoising, stage and step; all counted from 1."""
        chunk = self.chunk_text(self.chunk + 1)
        if self.playback and self.playback.state in WAITING:
            return f"{chunk}, {WAITING[self.playback.state]}"
        if self.phase != "denoise" or self.step is None:
            return f"{chunk}, {PHASES[self.phase or 'denoise']}"
        return (
            f"{chunk}, stage {self.step.stage + 1}/{self.known.stages}, "
            f"step {self.step.step + 1}/{self.step.steps_in_stage}"
        )

    def chunk_text(self, number: int) -> str:
        chunks = self.known.chunks
        return f"chunk {number}" if chunks is None else f"chunk {min(number, chunks)}/{chunks}"

    @property
    def frames_text(self) -> str:
        return _of(self.frames_done, self.known.frames, "/") + " frames"

    @property
    def speed_text(self) -> str:
        return f"{self.frames_per_second:.3g} frames/s" if self.frames_per_second else ""

    @property
    def left_text(self) -> str:
        """The time left, or "" for a film of unknown length."""
        if self.known.chunks is None:
            return ""
        return "-:-- left" if self.seconds_left is None else f"{format_duration(self.seconds_left)} left"

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


def _of(done: object, in_all: object | None, between: str) -> str:
    """Format `3/9`, or `3` if the total is not known."""
    return f"{done}" if in_all is None else f"{done}{between}{in_all}"
