"""The playhead: how far the film has been watched, and so how far ahead of it rendering may be.

Every time is in seconds of film. A chunk is decided, and with it the prompt that it follows, once at most `ahead`
seconds are in front of the playhead: a prompt shows within `ahead` and one chunk of when it came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

from helios_cli.units import FRAMES_PER_CHUNK

REPORT_SECONDS = 5.0
"""Time after which a viewer that says nothing more is gone."""

LATE_SECONDS = 0.05
"""Seconds for which nobody notices that frames are waited for."""


class Playhead:
    """The position of whoever watches the film, from any thread.

    Where viewers report it, that of the viewer who is furthest counts: one who has stopped, or watches the beginning,
    holds nobody up. Else it moves with the time on the wall, from the first frames on, and never past the last ones
    that are out.

    Attributes:
        ahead: as above, at least a chunk; None decides chunks as fast as they are rendered.
        now: the time on the wall, in seconds.
        decided: the end of the last chunk that is decided.
        out: the end of the last frames that a viewer can have.
    """

    def __init__(self, fps: float, ahead: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self.chunk_seconds = FRAMES_PER_CHUNK / fps
        self.ahead = None if ahead is None else max(ahead, self.chunk_seconds)
        self.decided = self.out = 0.0
        self._fps, self.now = fps, now
        self._changed = threading.Condition(threading.RLock())  # a signal handler may hold it already
        self._viewers: dict[Hashable, tuple[float, float]] = {}  # where each one was, and when
        self._position, self._moved, self._late_seconds = 0.0, now(), 0.0
        self._is_paused, self._may_pause, self._is_over = False, True, False

    @property
    def position(self) -> float:
        """The seconds of film that have been watched."""
        with self._changed:
            return self._move()

    @property
    def in_front(self) -> float:
        """The seconds of film that are out and not watched yet."""
        with self._changed:
            return max(0.0, self.out - self._move())

    @property
    def delay(self) -> float:
        """The seconds of film until a prompt shows that comes now, if the one before it is not held longer."""
        with self._changed:
            return max(0.0, self.decided - self._move())

    @property
    def is_paused(self) -> bool:
        return self._is_paused

    def was_late(self) -> bool:
        """Return whether whoever watches had to wait for frames since the last call."""
        with self._changed:
            self._move()
            late, self._late_seconds = self._late_seconds, 0.0
            return late > LATE_SECONDS

    def show(self, num_frames: int) -> None:
        """Note that so many frames of the film are out."""
        with self._changed:
            self._move()
            self.out = num_frames / self._fps
            self._changed.notify_all()

    def begin_at(self, chunk: int) -> None:
        """Begin at the end of the `chunk` chunks that an earlier run left."""
        with self._changed:
            self._position = self.out = self.decided = chunk * self.chunk_seconds
            self._moved, self._late_seconds = self.now(), 0.0

    def report(self, viewer: Hashable, position: float) -> None:
        """Note how far a viewer is; it is forgotten after REPORT_SECONDS."""
        with self._changed:
            self._viewers[viewer] = position, self.now()
            self._changed.notify_all()

    def leave(self, viewer: Hashable) -> None:
        """Forget a viewer."""
        with self._changed:
            self._move()
            self._viewers.pop(viewer, None)
            self._changed.notify_all()

    def pause(self) -> None:
        """Let no chunk be decided until `resume`."""
        with self._changed:
            self._is_paused = self._may_pause
            self._changed.notify_all()

    def resume(self) -> None:
        with self._changed:
            self._is_paused = False
            self._changed.notify_all()

    def never_pause(self) -> None:
        """End a pause, and any later one: nobody is left who could."""
        with self._changed:
            self._may_pause = False
            self.resume()

    def set_over(self, is_over: bool) -> None:
        """Let nothing wait once nobody can watch any more: the reader of a stream has gone."""
        with self._changed:
            self._is_over = is_over
            self._changed.notify_all()

    def skip(self, seconds: float) -> None:
        """Leave out the last `seconds` on the wall: the process was stopped, and whoever watches it with it."""
        with self._changed:
            self._moved += seconds

    def seconds_until(self, start: float) -> float:
        """Return the time until the chunk that begins at `start` may be decided; infinity during a pause."""
        with self._changed:
            if self._is_paused and not self._is_over:
                return float("inf")
            return 0.0 if self.ahead is None or self._is_over else max(0.0, start - self.ahead - self._move())

    def wait(self, seconds: float) -> None:
        """Wait for so long at most, until anything changes that `seconds_until` depends on."""
        with self._changed:
            self._changed.wait(min(seconds, REPORT_SECONDS))

    def _move(self) -> float:
        """Return the position now. Call it before `out` changes: the time on the wall counts up to there."""
        now = self.now()
        self._viewers = {viewer: one for viewer, one in self._viewers.items() if now - one[1] < REPORT_SECONDS}
        passed, self._moved = now - self._moved, now
        if self._viewers:
            self._position = min(self.out, max(position for position, _ in self._viewers.values()))
            late = passed if self._position > self.out - LATE_SECONDS else 0.0
        else:
            late = max(0.0, self._position + passed - self.out)
            self._position = min(self.out, self._position + passed)
        self._late_seconds += late if self.out else 0.0  # before the first frames nobody watches
        return self._position
