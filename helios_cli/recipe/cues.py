"""Turns prompts with points in time, as text, subtitles and schedules have them, into shots with lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helios_cli.recipe.problems import Place, Problems

TOLERANCE = 1e-3
"""Seconds; the forms with times write milliseconds at most."""


@dataclass
class Cue:
    """A prompt, its line, and the times it is given, in seconds from the film's start."""

    prompt: str
    line: int
    start: float | None = None
    end: float | None = None
    seconds: float | None = None
    transition: str | None = None
    blend_seconds: float | None = None


def shots_from(cues: Sequence[Cue], problems: Problems) -> tuple[dict, dict[Place, int]]:
    """Return recipe values and lines of a film made of `cues`. Gaps, overlaps and contradictions go to `problems`.

    Cues without a length between two known points share the time equally; those after the last keep none.
    """
    shots = []
    for cue, seconds in zip(cues, _lengths(cues, problems), strict=True):
        shot = {"prompt": cue.prompt, "seconds": seconds}
        shot |= {"transition": cue.transition, "blend_seconds": cue.blend_seconds}
        shots.append({key: value for key, value in shot.items() if value is not None})
    return {"shot": shots}, {("shot", index): cue.line for index, cue in enumerate(cues)}


def _lengths(cues: Sequence[Cue], problems: Problems) -> list[float | None]:
    lengths: list[float | None] = []
    now = 0.0  # end of the cues so far, or of those before the first one without a length
    open_cues: list[int] = []  # cues without a length since `now`
    fixed = 0.0  # length of the other cues since `now`
    for index, cue in enumerate(cues):
        place = {"line": cue.line, "shot": index + 1}
        if cue.start is not None:
            left = cue.start - now - fixed
            if open_cues and left <= 0:
                problems.add(f"starts at {cue.start:g} s, which leaves no time for the shot before it", **place)
            elif not open_cues:
                _check_start(cue.start, now, index, problems, place)
            for shot in open_cues:
                lengths[shot] = left / len(open_cues) if left > 0 else None
            now, open_cues, fixed = cue.start, [], 0.0
        seconds = cue.seconds
        if cue.end is not None:
            seconds = cue.end - cue.start if cue.start is not None and cue.end > cue.start else None
            if seconds is None:
                problems.add(f"ends at {cue.end:g} s, which is not after its start", **place)
        lengths.append(seconds)
        if seconds is None:
            open_cues.append(index)
        elif open_cues:
            fixed += seconds
        else:
            now += seconds
    return lengths


def _check_start(start: float, now: float, index: int, problems: Problems, place: dict[str, int]) -> None:
    if start > now + TOLERANCE:
        before = "the shot before it ends" if index else "the film begins"
        message = f"starts at {start:g} s, but {before} at {now:g} s"
        problems.add(message, **place, suggestion=f"write {now:g}s, or add a shot for the time in between")
    elif start < now - TOLERANCE:
        message = f"starts at {start:g} s, while the shot before it lasts until {now:g} s"
        problems.add(message, **place, suggestion=f"write {now:g}s, or shorten the shot before")
