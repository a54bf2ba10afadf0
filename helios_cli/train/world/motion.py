"""The motion that a path shows."""

from __future__ import annotations

import numpy as np

STILL = 7.0
"""Pixels, of a picture 64 high, that a resting object may wobble from end to end."""

REVERSAL = 5.0
"""Pixels that a path goes back before that is a turn."""


def motion_of(path: np.ndarray) -> str:
    """One of palette.MOTIONS, by a path [frames, 2] with NaN where nothing was seen. At least one frame is seen."""
    path = _smooth(_filled(np.asarray(path, np.float64)))
    width, height = np.ptp(path, axis=0)
    if max(width, height) < STILL:
        return "still"
    if width < 0.75 * height and _reversals(path[:, 1]) >= 2:  # more than half of an orbit is wider
        return "bouncing"
    if min(width, height) > 9 and abs(_turning(path)) > 110:
        return "circling"
    right, down = path[-1] - path[0]
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def _filled(path: np.ndarray) -> np.ndarray:
    """Gaps filled by straight lines."""
    seen = ~np.isnan(path[:, 0])
    at = np.arange(len(path))
    return np.stack([np.interp(at, at[seen], path[seen, axis]) for axis in (0, 1)], axis=-1)


def _smooth(path: np.ndarray) -> np.ndarray:
    """Medians of three frames, then means of three: one misread frame does not show."""
    framed = np.pad(path, ((1, 1), (0, 0)), mode="edge")
    path = np.median(np.stack([framed[:-2], framed[1:-1], framed[2:]]), axis=0)
    framed = np.pad(path, ((1, 1), (0, 0)), mode="edge")
    return (framed[:-2] + framed[1:-1] + framed[2:]) / 3


def _turning(path: np.ndarray) -> float:
    """Degrees that the direction turns in all, clockwise positive, in steps of four frames."""
    steps = path[4:] - path[:-4]
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    changes = (np.diff(angles) + np.pi) % (2 * np.pi) - np.pi
    clear = np.linalg.norm(steps, axis=1) > 1.5
    return float(np.degrees(changes[clear[1:] & clear[:-1]].sum()))


def _reversals(values: np.ndarray) -> int:
    """How often values turn back by more than REVERSAL."""
    count, extreme, rising = 0, values[0], None
    low = high = values[0]
    for value in values[1:]:
        low, high = min(low, value), max(high, value)
        if rising is None:
            if high - low > REVERSAL:
                rising = value == high
                extreme = value
        elif (value > extreme) == rising:
            extreme = value
        elif abs(value - extreme) > REVERSAL:
            count, extreme, rising = count + 1, value, not rising
    return count
