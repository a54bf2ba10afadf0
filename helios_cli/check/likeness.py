"""Measures how alike two pictures are: the mean squared error that PSNR is made of, and SSIM.

Both are over red, green and blue together, and are what ffmpeg's filters `psnr` and `ssim` give for such pictures.
"""

from __future__ import annotations

from functools import reduce

import numpy as np

BLOCK = 4
"""Pixels between two windows of SSIM, which are twice as wide and high."""

BAND = 32
"""Rows of windows that are computed at a time, so that memory does not grow with the picture."""

SAMPLES = (2 * BLOCK) ** 2
LEVELS = 255
C1, C2 = 416 / SAMPLES**2, 235963 / (SAMPLES * (SAMPLES - 1))
"""The constants of ffmpeg's filter, which has them as whole numbers. The second is (0.03 x 255)², as in Wang et al.
(2004); the first is their (0.01 x 255)² over 64, which matters in black parts alone."""


def squared_error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean squared difference of two pictures, uint8 [h, w, 3], in squared levels."""
    total = 0
    for top in range(0, len(one), BAND * BLOCK):
        band = slice(top, top + BAND * BLOCK)
        difference = one[band].astype(np.int32) - other[band]
        total += int(np.square(difference).sum(dtype=np.int64))
    return total / one.size


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    """Return the largest difference of two values at the same place, in levels."""
    return int((np.maximum(one, other) - np.minimum(one, other)).max())


def psnr(squared: float) -> float | None:
    """Return decibels for a mean squared error; None, for infinity, if it is 0."""
    return float(10 * np.log10(LEVELS**2 / squared)) if squared else None


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Return the structural similarity of two pictures, uint8 [h, w, 3]; NaN if they are smaller than a window.

    It is the mean over all windows of 8 x 8 pixels, every 4 pixels, of all channels.
    """
    rows, columns = one.shape[0] // BLOCK, one.shape[1] // BLOCK
    if min(rows, columns) < 2:
        return float("nan")
    total = 0.0
    for top in range(0, rows - 1, BAND):
        pixels = slice(BLOCK * top, BLOCK * min(top + BAND + 1, rows)), slice(BLOCK * columns)
        total += float(_similarities(one[pixels].astype(np.int32), other[pixels].astype(np.int32)).sum())
    return total / ((rows - 1) * (columns - 1) * one.shape[2])


def _similarities(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the similarity in every window of a band."""
    first, second = _sums(one) / SAMPLES, _sums(other) / SAMPLES
    energy, product = _sums(one * one + other * other) / SAMPLES, _sums(one * other) / SAMPLES
    unbiased = SAMPLES / (SAMPLES - 1)
    variances = (energy - first * first - second * second) * unbiased
    covariance = (product - first * second) * unbiased
    light = (2 * first * second + C1) / (first * first + second * second + C1)
    return light * (2 * covariance + C2) / (variances + C2)


def _sums(values: np.ndarray) -> np.ndarray:
    """Sum over every window; int32, sides multiples of BLOCK."""
    rows = reduce(np.add, (values[start::BLOCK] for start in range(BLOCK)))
    blocks = reduce(np.add, (rows[:, start::BLOCK] for start in range(BLOCK)))
    pairs = blocks[:-1] + blocks[1:]
    return pairs[:, :-1] + pairs[:, 1:]
