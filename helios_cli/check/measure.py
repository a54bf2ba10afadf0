"""Measures a film in one pass: seven numbers a frame, and how far each chunk is from the start.

All values are in levels, 0 to 255, of the reduced frames of `footage`. A frame takes 28 bytes in the result; memory
holds one picture, the small ones of a take's first chunk, and a few thumbnails.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from helios_cli.check.layout import Span

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""BT.709 weights of red, green and blue."""

LOOK = ("red", "green", "blue", "brightness", "saturation", "contrast")
"""The columns of `Measures.looks`."""

GRID = 16
"""Cells on each side of the small pictures by which chunks are compared with the start."""

MAX_THUMBNAILS = 48
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    """The middle frame of a chunk."""

    chunk: int
    jpeg: bytes


@dataclass(frozen=True)
class Measures:
    """A film in numbers.

    Attributes:
        spans: the chunks that have frames.
        looks: float32 [frames, 6], columns as in LOOK: mean red, green and blue; mean luma; mean distance between the
            largest and the smallest channel; standard deviation of luma over the picture.
        steps: float32 [frames], mean absolute difference from the frame before; 0 for the first.
        from_start: the distance of each chunk from its take's first chunk.
        thumbnails: at most 48, evenly spread.
    """

    spans: tuple[Span, ...]
    looks: np.ndarray
    steps: np.ndarray
    from_start: tuple[float, ...]
    thumbnails: tuple[Thumbnail, ...]


def measure(frames: Iterable[np.ndarray], spans: Iterable[Span]) -> Measures:
    """Measure at least one frame (uint8 [h, w, 3]) chunk by chunk, until the frames or the spans end."""
    looks, steps = array("f"), array("f")
    measured: list[Span] = []
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
            thumbnails.offer(len(measured), number, span.num_frames, frame)
            previous = levels
        if not cells:
            break
        small = np.stack(cells)
        if span.cut or not measured:
            start = small
        from_start.append(_distance(small, start) if start is not small else 0.0)
        measured.append(Span(span.start_frame, len(cells), span.cut))
    columns = np.frombuffer(looks, np.float32).reshape(-1, len(LOOK))
    return Measures(tuple(measured), columns, np.frombuffer(steps, np.float32), tuple(from_start), thumbnails.taken())


def _look(levels: np.ndarray) -> tuple[float, ...]:
    """Return the columns of LOOK for one frame, float32 [h, w, 3]."""
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    luma = levels @ LUMA
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return red.mean(), green.mean(), blue.mean(), luma.mean(), spread.mean(), luma.std()


def _cells(levels: np.ndarray) -> np.ndarray:
    """Average the frame [h, w, 3] over at most 16 x 16 cells; return a vector."""
    for axis in (0, 1):
        side = levels.shape[axis]
        edges = np.linspace(0, side, min(GRID, side) + 1).astype(int)
        sums = np.add.reduceat(levels, edges[:-1], axis=axis)
        levels = sums / np.expand_dims(np.diff(edges), tuple(other for other in range(3) if other != axis))
    return levels.astype(np.float32).ravel()


def _distance(chunk: np.ndarray, start: np.ndarray) -> float:
    """Return the mean difference of a chunk and the start, both [frames, cells], in the best alignment in time.

    A film may begin again in the middle of a chunk, so the chunk is shifted against the start by up to half its length.
    Both run forwards: moving back the same way is no repetition.
    """
    between = np.stack([np.abs(start - picture).mean(axis=1) for picture in chunk])
    overlap = (min(between.shape) + 1) // 2
    shifts = range(overlap - between.shape[0], between.shape[1] - overlap + 1)
    return float(min(np.diagonal(between, shift).mean() for shift in shifts))


class _Thumbnails:
    """A picture of every `_stride`-th chunk. When there are too many, every other one is dropped."""

    def __init__(self) -> None:
        self._stride = 1
        self._taken: dict[int, bytes] = {}

    def offer(self, chunk: int, number: int, length: int, frame: np.ndarray) -> None:
        """Take frame `number` of a chunk of `length` if it is the middle one, or the first if the film ends earlier."""
        if chunk % self._stride or number not in (0, length // 2):
            return
        if len(self._taken) == MAX_THUMBNAILS and chunk not in self._taken:
            self._stride *= 2
            self._taken = {index: jpeg for index, jpeg in self._taken.items() if index % self._stride == 0}
            self.offer(chunk, number, length, frame)
            return
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
        self._taken[chunk] = file.getvalue()

    def taken(self) -> tuple[Thumbnail, ...]:
        return tuple(Thumbnail(chunk, jpeg) for chunk, jpeg in self._taken.items())
