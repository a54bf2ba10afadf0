"""Prompts with points in time, as text, subtitles and schedules have them, turned into shots with lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from helios_cli.recipe.film import Place
from helios_cli.recipe.problems import Problems
from helios_cli.units import counted

TOLERANCE = 1e-3
"""Seconds; the forms that hold times write milliseconds at most."""


@dataclass
class Cue:
    """A prompt and what is known of its time, in seconds from the film's start. `line` is where it stands."""

    prompt: str
    line: int
    start: float | None = None
    end: float | None = None
    seconds: float | None = None
    transition: str | None = None
    blend_seconds: float | None = None


def shots_from(cues: Sequence[Cue], problems: Problems) -> tuple[dict, dict[Place, int]]:
    """Recipe values and lines of a film made of `cues`. Gaps, overlaps and contradictions go to `problems`.

    Cues without a length between two known points share the time equally; those after the last keep none.
    """
    lengths = _Clock(problems).lengths(cues)
    shots, lines = [], {}
    for index, (cue, seconds) in enumerate(zip(cues, lengths, strict=True)):
        shot = {
            "prompt": cue.prompt,
            "seconds": seconds,
            "transition": cue.transition,
            "blend_seconds": cue.blend_seconds,
        }
        shots.append({key: value for key, value in shot.items() if value is not None})
        lines["shot", index] = cue.line
    return {"shot": shots}, lines


class _Clock:
    """Walks along the cues; `now` is the end of the last one, or None while that is open."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.now: float | None = 0.0
        self.since = 0.0  # where the first open cue begins
        self.open: list[int] = []
        self.fixed = 0.0  # length of the cues after `since` that have one
        self.found: list[float | None] = []

    def lengths(self, cues: Sequence[Cue]) -> list[float | None]:
        for index, cue in enumerate(cues):
            if cue.start is not None:
                self._arrive(index, cue)
            seconds = self._length(index, cue)
            self.found.append(seconds)
            if seconds is None:
                if self.now is not None:
                    self.since, self.fixed = self.now, 0.0
                self.open.append(index)
                self.now = None
            elif self.now is None:
                self.fixed += seconds
            else:
                self.now += seconds
        return self.found

    def _length(self, index: int, cue: Cue) -> float | None:
        if cue.end is None:
            return cue.seconds
        if cue.start is None or cue.end <= cue.start:
            message = f"ends at {cue.end:g} s, which is not after its start"
            self.problems.add(message, line=cue.line, shot=index + 1)
            return None
        return cue.end - cue.start

    def _arrive(self, index: int, cue: Cue) -> None:
        """The film reaches a cue that says when it starts."""
        place = {"line": cue.line, "shot": index + 1}
        if self.now is None:
            left = cue.start - self.since - self.fixed
            if left <= 0:
                self.problems.add(f"starts at {cue.start:g} s, which leaves no time for the shot before it", **place)
            for shot in self.open:
                self.found[shot] = left / len(self.open) if left > 0 else None
            self.open = []
        elif cue.start > self.now + TOLERANCE:
            before = "the shot before it ends" if index else "the film begins"
            message = f"starts at {cue.start:g} s, but {before} at {self.now:g} s"
            self.problems.add(message, **place, suggestion=f"write {self.now:g}s, or a shot for what stands between")
        elif cue.start < self.now - TOLERANCE:
            message = f"starts at {cue.start:g} s, while the shot before it lasts until {self.now:g} s"
            self.problems.add(message, **place, suggestion=f"write {self.now:g}s, or shorten the shot before")
        self.now = cue.start


def close_gaps(cues: Sequence[Cue]) -> list[str]:
    """Let each cue last until the next one starts, the first from 0; returns what was changed, for a notice."""
    changed = []
    if cues and cues[0].start:
        changed.append(f"the first cue begins with the film, not at {cues[0].start:g} s")
        cues[0].start = 0.0
    gaps = [(a, b) for a, b in pairwise(cues) if a.end < b.start]
    for before, after in gaps:
        before.end = after.start
    if gaps:
        changed.append(f"{counted(len(gaps), 'pause')} between cues: the cue before lasts until the next one")
    return changed
