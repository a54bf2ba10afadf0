"""Measures a film in one pass: some numbers a frame, and how far each chunk is from the start.

The reduced frames of `footage` give means over the picture, differences and motion; luma at full size gives detail.
A frame takes 52 bytes in the result; memory holds two pictures, the small ones of a take's first chunk, and a few
thumbnails.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from helios_cli.check.detail import Detail, DetailMeter
from helios_cli.check.flow import Motion, MotionMeter
from helios_cli.check.footage import LUMA, Frame
from helios_cli.check.layout import Span

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
        details: float32 [frames, 4], columns as in `detail.Detail`.
        motions: float32 [frames, 2], columns as in `flow.Motion`.
        from_start: the distance of each chunk from its take's first chunk.
        thumbnails: at most 48, evenly spread.
    """

    spans: tuple[Span, ...]
    looks: np.ndarray
    steps: np.ndarray
    details: np.ndarray
    motions: np.ndarray
    from_start: tuple[float, ...]
    thumbnails: tuple[Thumbnail, ...]


class Footage(Protocol):
    """Frames to measure: a VideoFile or a PictureFolder."""

    def frames(self) -> Iterator[Frame]: ...


def measure(footage: Footage, spans: Iterable[Span]) -> Measures:
    """Measure a film of at least one frame chunk by chunk. `spans` do not end before it does."""
    looks, steps, motions, details = array("f"), array("f"), array("f"), array("f")
    motion_meter = MotionMeter()
    frames = _measured_details(footage.frames(), details)
    measured: list[Span] = []
    from_start: list[float] = []
    thumbnails = _Thumbnails()
    start = np.empty(0)
    previous: np.ndarray | None = None
    for span in spans:
        cells: list[np.ndarray] = []
        for number, frame in zip(range(span.num_frames), frames, strict=False):
            levels = frame.astype(np.float32)
            luma = levels @ LUMA
            looks.extend(_look(levels, luma))
            motions.extend(motion_meter.measure(luma))
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
    return Measures(
        tuple(measured),
        looks=np.frombuffer(looks, np.float32).reshape(-1, len(LOOK)),
        steps=np.frombuffer(steps, np.float32),
        details=np.frombuffer(details, np.float32).reshape(-1, len(Detail._fields)),
        motions=np.frombuffer(motions, np.float32).reshape(-1, len(Motion._fields)),
        from_start=tuple(from_start),
        thumbnails=thumbnails.taken(),
    )


def _measured_details(frames: Iterable[Frame], details: array[float]) -> Iterator[np.ndarray]:
    """Yield the reduced frames; while one is in use, another thread measures its detail, which goes to `details`."""
    meter = DetailMeter()
    with ThreadPoolExecutor(1) as pool:
        for frame in frames:
            detail = pool.submit(meter.measure, frame.luma)
            yield frame.reduced
            details.extend(detail.result())


def _look(levels: np.ndarray, luma: np.ndarray) -> tuple[float, ...]:
    """Return the columns of LOOK for one frame, float32 [h, w, 3]."""
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
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
