"""What is measured of a film, in one pass: seven numbers a frame, and how far each chunk is from the start.

All values are in levels, 0 to 255, of the reduced frames of `footage`. A frame costs 28 bytes in the result; of the
pictures themselves only one, the small ones of a take's first chunk, and a few thumbnails are kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from helios_cli.check.layout import Span

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""BT.709 weights of red, green and blue."""

LOOK = ("red", "green", "blue", "brightness", "saturation", "contrast")
"""The columns of `Measures.looks`."""

GRID = 16
"""Cells on each side of the small pictures by which chunks are compared with the start."""

MAX_THUMBNAILS = 48


@dataclass(frozen=True)
class Thumbnail:
    """The middle frame of a chunk, uint8 [h, w, 3]."""

    chunk: int
    pixels: np.ndarray


@dataclass(frozen=True)
class Measures:
    """A film in numbers.

    Attributes:
        spans: the chunks, as far as there were frames.
        looks: float32 [frames, 6], columns as in LOOK: mean red, green and blue; mean luma; mean distance between the
            largest and the smallest channel; standard deviation of luma over the picture.
        steps: float32 [frames], mean absolute difference from the frame before; 0 for the first.
        from_start: for each chunk the distance from its take's first chunk; 0 for that one.
        thumbnails: at most 48, evenly spread.
    """

    spans: tuple[Span, ...]
    looks: np.ndarray
    steps: np.ndarray
    from_start: tuple[float, ...]
    thumbnails: tuple[Thumbnail, ...]


def measure(frames: Iterable[np.ndarray], spans: Iterable[Span]) -> Measures:
    """Measures `frames` (uint8 [h, w, 3]) chunk by chunk; stops at the end of either."""
    looks, steps = array("f"), array("f")
    found: list[Span] = []
    from_start: list[float] = []
    thumbnails = _Thumbnails()
    start = np.empty(0)
    previous: np.ndarray | None = None
    pictures = iter(frames)
    for span in spans:
        cells: list[np.ndarray] = []
        for number, frame in zip(range(span.num_frames), pictures, strict=False):
            levels = frame.astype(np.float32)
            looks.extend(_look(levels))
            steps.append(0.0 if previous is None else float(np.abs(levels - previous).mean()))
            cells.append(_cells(levels))
            thumbnails.offer(len(found), number, span.num_frames, frame)
            previous = levels
        if not cells:
            break
        small = np.stack(cells)
        if span.cut or not found:
            start = small
        from_start.append(_distance(small, start) if start is not small else 0.0)
        found.append(Span(span.start_frame, len(cells), span.cut))
    columns = np.frombuffer(looks, np.float32).reshape(-1, len(LOOK))
    return Measures(tuple(found), columns, np.frombuffer(steps, np.float32), tuple(from_start), thumbnails.kept())
