"""Estimates how the picture moves from one frame to the next: a vector for every pixel of the reduced frames.

The method is that of Lucas and Kanade (1981) from coarse to fine: within a window, the shift that explains the change
best by the gradient. Where there is no gradient the vectors of the coarser picture stay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

WINDOW = 7
"""Pixels on each side of the middle of a window."""

ITERATIONS = 2
LARGEST_CORRECTION = 1.0
"""Pixels by which an iteration may change a vector: the coarser pictures leave less than this to be done."""

DAMPING = 1000.0
"""Added to the squared gradients, which are summed over a window, so that noise in a flat area moves nothing."""

LEAST_SIDE = 12
"""Shortest side in pixels of the coarsest picture, and of one that is measured at all."""

REFERENCE = (640, 384)
"""The size at which HeliosBench measures motion. Lengths are in pixels of a picture 640 long."""


class Motion(NamedTuple):
    """The motion from the frame before, in pixels of a 640x384 picture.

    Attributes:
        length: mean length of the vectors.
        signed: mean of their two components, where right and down are positive and what moves the opposite way
            cancels. HeliosBench's motion amplitude is the absolute value of its mean over a film.
    """

    length: float
    signed: float


class MotionMeter:
    """Measures reduced frames, float32 [h, w] of luma, one after another."""

    def __init__(self) -> None:
        self._previous: list[np.ndarray] = []

    def measure(self, luma: np.ndarray) -> Motion:
        """Return the motion from the frame before; NaN for the first."""
        before, self._previous = self._previous, _pyramid(luma)
        if not before:
            return Motion(np.nan, np.nan)
        height, width = luma.shape
        if min(height, width) < LEAST_SIDE:
            return Motion(0.0, 0.0)
        across, down = flow(before, self._previous)
        length = float(np.hypot(across, down).mean(dtype=np.float64)) * REFERENCE[0] / max(height, width)
        scaled = across.mean() * REFERENCE[0] / width, down.mean() * REFERENCE[1] / height
        return Motion(length, float(scaled[0] + scaled[1]) / 2)


def _pyramid(luma: np.ndarray) -> list[np.ndarray]:
    """Return the picture, then ever smaller ones, each half as large."""
    levels = [luma]
    while min(levels[-1].shape) >= 2 * LEAST_SIDE:
        height, width = (side // 2 * 2 for side in levels[-1].shape)
        even = levels[-1][:height, :width]
        levels.append((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4)
    return levels


def flow(before: list[np.ndarray], after: list[np.ndarray]) -> np.ndarray:
    """Return the vectors, float32 [2, h, w], across and down, that take `before` to `after`, both pyramids."""
    vectors = np.zeros((2, *before[-1].shape), np.float32)
    for first, second in zip(before[::-1], after[::-1], strict=True):
        vectors = _refined(_enlarged(vectors, first.shape), first, second)
    return vectors


def _enlarged(vectors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the vectors of a picture half as large for one of `shape`."""
    if vectors.shape[1:] == shape:
        return vectors
    rows, columns = (
        np.minimum(np.arange(new) // 2, old - 1) for new, old in zip(shape, vectors.shape[1:], strict=True)
    )
    return 2 * vectors[:, rows[:, None], columns]


def _refined(vectors: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    height, width = first.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    down, across = np.gradient(first)
    aa, ad, dd = _windowed(np.stack([across * across, across * down, down * down]))
    aa, dd = aa + DAMPING, dd + DAMPING
    determinant = aa * dd - ad * ad
    for _ in range(ITERATIONS):
        x, y = columns + vectors[0], rows + vectors[1]
        is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        change = (_sampled(second, x, y) - first) * is_inside
        a, d = _windowed(np.stack([across * change, down * change]))
        correction = np.stack([dd * a - ad * d, aa * d - ad * a]) / determinant
        vectors = vectors - correction.clip(-LARGEST_CORRECTION, LARGEST_CORRECTION)
    return vectors


def _windowed(values: np.ndarray) -> np.ndarray:
    """Sum [n, h, w] over windows, which end at the picture's edges."""
    for axis in (1, 2):
        side = values.shape[axis]
        places = np.arange(side)
        empty = np.zeros_like(values.take([0], axis))
        sums = np.concatenate([empty, np.cumsum(values, axis, dtype=np.float32)], axis)
        values = sums.take(np.minimum(places + WINDOW + 1, side), axis) - sums.take(
            np.maximum(places - WINDOW, 0), axis
        )
    return values


def _sampled(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return `picture` at places between its pixels, linearly interpolated."""
    height, width = picture.shape
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left = np.minimum(x.astype(np.intp), width - 2)
    top = np.minimum(y.astype(np.intp), height - 2)
    right, below = x - left, y - top
    flat, corner = picture.ravel(), top * width + left
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    lower = flat[corner + width] * (1 - right) + flat[corner + width + 1] * right
    return (upper * (1 - below) + lower * below).astype(np.float32)
