"""Finds the chunks of a film: every 33 frames, or those in the film's sidecar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from helios_cli.film.target import sidecar_of

MAX_CHUNK_FRAMES = 600
"""Chunks are compared with the first frame by frame, which costs their length squared."""

MAX_SIDECAR_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Span:
    """A chunk's frames. With `cut` a new take begins there, as at the start and at a hard cut."""

    start_frame: int
    num_frames: int
    cut: bool


@dataclass(frozen=True)
class Sidecar:
    """The chunks in a film's sidecar, and its rate, or None."""

    spans: tuple[Span, ...]
    fps: float | None

    @property
    def num_frames(self) -> int:
        return self.spans[-1].start_frame + self.spans[-1].num_frames


def grid(chunk_frames: int, start_frame: int = 0) -> Iterator[Span]:
    """Yield chunks of equal length without end. Only frame 0 begins a take."""
    return (Span(start, chunk_frames, start == 0) for start in count(start_frame, chunk_frames))


def read_sidecar(film: Path) -> Sidecar | None:
    """Read the film's sidecar, or return None if there is no sidecar or it lists no chunks.

    It lists them under `chunks`, in order and without gaps, each with `start_frame`, `num_frames` and, if it begins
    with a cut, `fresh`: true. Any other file of that name, such as the film's recipe, is not a sidecar.
    """
    path = sidecar_of(film)
    spans: list[Span] = []
    try:
        if not path.is_file() or path.stat().st_size > MAX_SIDECAR_BYTES:
            return None
        content = json.loads(path.read_bytes())
        start = 0
        for chunk in content["chunks"]:
            length = chunk["num_frames"]
            if chunk["start_frame"] != start or not isinstance(length, int) or length < 1:
                return None
            spans.append(Span(start, length, start == 0 or chunk.get("fresh") is True))
            start += length
        fps = content.get("fps")
        if after := content.get("after"):  # what comes after the render may change the rate
            spans = [_retimed(span, after["fps"] / fps) for span in spans]
            fps = after["fps"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return None
    if any(span.num_frames > MAX_CHUNK_FRAMES for span in spans):
        return None
    is_rate = isinstance(fps, int | float) and 1 <= fps <= 1000  # the rates that a film can be written at
    return Sidecar(tuple(spans), float(fps) if is_rate else None) if spans else None


def _retimed(span: Span, ratio: float) -> Span:
    """Return the span in a film with `ratio` as many frames."""
    start, end = (round(frame * ratio) for frame in (span.start_frame, span.start_frame + span.num_frames))
    return Span(start, max(1, end - start), span.cut)
