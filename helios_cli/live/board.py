"""The numbers and texts that a page shows of a film, from the events of the render."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from helios_cli.engine.events import ChunkDone, Event, FilmDone, Notice, PhaseStarted, PromptTaken
from helios_cli.recipe.schema import Shot
from helios_cli.units import FRAMES_PER_CHUNK

SHOTS_KEPT = 200
"""Shots of a film that a page lists."""

SPEED_CHUNKS = 8
"""Chunks whose speed is shown."""


class Board:
    """The numbers and texts of a film; events come from the thread that renders, and any other may read."""

    def __init__(self, chunk_seconds: float, begun: Sequence[Shot] = ()) -> None:
        """Begin with the shots of a film that goes on."""
        self._chunk_seconds = chunk_seconds
        self._lock = threading.Lock()
        self._phase, self._notice = "load", ""
        self._shots: deque[dict[str, Any]] = deque(maxlen=SHOTS_KEPT)  # number from 0, second, and as `PromptTaken`
        self._count = 0
        self._chunks: deque[float] = deque(maxlen=SPEED_CHUNKS)
        start = 0.0
        for shot in begun:
            self._add(start, shot.prompt, shot.transition if start else "cut")
            start += shot.seconds or 0.0

    def show(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, PhaseStarted):
                self._phase = event.phase
            elif isinstance(event, PromptTaken):
                start = event.chunk * self._chunk_seconds
                if not self._shots or start > self._shots[-1]["start"] + self._chunk_seconds / 2:
                    self._add(start, event.prompt, event.transition)
            elif isinstance(event, ChunkDone):
                self._chunks.append(event.seconds)
            elif isinstance(event, Notice):
                self._notice = event.message
            elif isinstance(event, FilmDone):
                self._phase = "done"

    @property
    def is_done(self) -> bool:
        """Return whether the film is finished."""
        return self._phase == "done"

    def say(self, notice: str) -> None:
        """Show a message."""
        with self._lock:
            self._notice = notice

    def fail(self, message: str) -> None:
        """Show why the film ends early."""
        with self._lock:
            self._phase, self._notice = "failed", message

    def _add(self, start: float, prompt: str, transition: str) -> None:
        self._shots.append({"number": self._count, "start": start, "prompt": prompt, "transition": transition})
        self._count += 1

    def state(self) -> dict[str, Any]:
        """Return the phase, the frames rendered per second, and the last message."""
        with self._lock:
            spent = sum(self._chunks)
            speed = len(self._chunks) * FRAMES_PER_CHUNK / spent if spent else None
            return {"phase": self._phase, "speed": speed, "notice": self._notice}

    def shots_from(self, number: int) -> Sequence[dict[str, Any]]:
        """Return the shots from `number` on."""
        with self._lock:
            return [shot for shot in self._shots if shot["number"] >= number]
