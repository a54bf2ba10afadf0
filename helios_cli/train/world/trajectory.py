"""Where an object is at any time: closed forms of the frame number, seamless over a film of any length.

Lengths are in pixels of a film of 128 x 64, x to the right and y down; times are in frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from helios_cli.units import FRAMES_PER_CHUNK

WIDTH, HEIGHT = 128, 64
MIDDLE = (WIDTH / 2, HEIGHT / 2)

MARGIN = 2.0
"""Smallest distance of an object from the edge of the picture, and from a second object."""

EXTENT = {"circle": (1.0, 1.0), "square": (0.90, 0.90), "triangle": (1.25, 1.09), "star": (1.34, 1.27)}
"""Half the width and half the height of a shape of radius 1. Areas are similar, so size does not reveal the shape."""

CORNER = 0.985
"""Roundness of the turn at an edge: 1 would reflect, smaller values slow down before it."""

PERIODS = {
    "left": (84, 132),
    "right": (84, 132),
    "up": (68, 80),
    "down": (68, 80),
    "circling": (36, 56),
    "bouncing": (16, 22),
    "still": (1, 1),
}
"""Shortest and longest period in frames. Half a period of a back-and-forth motion outlasts the first chunk."""

DRIFT_PERIODS = 8
"""Bounces until a drifting object is back."""


@dataclass(frozen=True)
class Trajectory:
    """A path.

    Attributes:
        motion: one of palette.MOTIONS.
        centre: centre of the path.
        reach: distance from the centre, in x and y.
        period: frames until the object is back at the same place in the same direction.
        phase: position within the period at frame 0, from 0 to 1.
    """

    motion: str
    centre: tuple[float, float]
    reach: tuple[float, float] = (0.0, 0.0)
    period: float = 1.0
    phase: float = 0.0

    def at(self, frames: np.ndarray) -> np.ndarray:
        """Return the object's centre at these frames, float64 [frames, 2]."""
        turn = np.asarray(frames, np.float64) / self.period + self.phase
        if self.motion == "circling":
            way = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
        elif self.motion == "bouncing":
            fall = turn % 1.0
            way = swing(turn / DRIFT_PERIODS), 1 - 8 * fall * (1 - fall)
        else:
            way = swing(turn), swing(turn)
        return np.stack(way, axis=-1) * self.reach + self.centre

    def round_trip(self) -> np.ndarray:
        """Return the object's centres, four per frame, until it is back where it began, float64 [places, 2]."""
        rounds = DRIFT_PERIODS if self.motion == "bouncing" else 1
        return self.at(np.arange(0, rounds * self.period, 0.25))


def swing(turn: np.ndarray) -> np.ndarray:
    """Go back and forth at an even pace: -1 at 0, 1 at a half, -1 at 1, with a soft turn at both ends."""
    return -np.arcsin(CORNER * np.cos(2 * np.pi * turn)) / np.arcsin(CORNER)


def _swing_phase(place: float) -> float:
    """Return the time, from 0 to a half, at which `swing` is at `place` on its way up."""
    return float(np.arccos(-np.sin(np.clip(place, -1, 1) * np.arcsin(CORNER)) / CORNER) / (2 * np.pi))


def _period(motion: str, length: float) -> float:
    shortest, longest = PERIODS[motion]
    return float(shortest + (longest - shortest) * length)


def room(shape: str, radius: float) -> tuple[float, float]:
    """Return how far the centre of such an object may be from the middle of the picture, in x and y."""
    wide, high = EXTENT[shape]
    return WIDTH / 2 - radius * wide - MARGIN, HEIGHT / 2 - radius * high - MARGIN


def draw_trajectory(
    dice: np.random.Generator, motion: str, space: tuple[float, float], *, length: float, low: bool, drifts: bool
) -> Trajectory:
    """Draw a path within `space`. The motion's direction holds from frame 0 through the first chunk.

    Args:
        length: position of its period in the motion's range, 0 to 1.
        low: stay in the lower part of the picture, if the motion allows that.
        drifts: let a bouncing object wander to the sides.
    """
    period = _period(motion, length)
    x = MIDDLE[0] + space[0] * float(dice.uniform(-0.8, 0.8))
    y = MIDDLE[1] + space[1] * float(dice.uniform(0.5 if low else -1, 1))
    reach = float(dice.uniform(0.93, 1))
    anywhere = float(dice.uniform(0, 1))
    spare = max(0.0, 0.5 - (FRAMES_PER_CHUNK - 1) / period)
    phase = spare * anywhere + (0.5 if motion in ("left", "up") else 0.0)
    if motion in ("left", "right"):
        return Trajectory(motion, (MIDDLE[0], y), (space[0] * reach, 0.0), period, phase)
    if motion in ("up", "down"):
        return Trajectory(motion, (x, MIDDLE[1]), (0.0, space[1]), period, phase)
    if motion == "circling":
        wide = float(dice.uniform(16, 24))
        centre = MIDDLE[0] + (space[0] - wide) * float(dice.uniform(-0.9, 0.9)), MIDDLE[1]
        return Trajectory(motion, centre, (wide, space[1] * (2 * reach - 1)), period, anywhere)
    if motion == "bouncing":
        aside = min(float(dice.uniform(8, 16)), space[0] - abs(x - MIDDLE[0])) if drifts else 0.0
        return Trajectory(motion, (x, MIDDLE[1]), (aside, space[1] * (2 * reach - 1)), period, anywhere)
    return Trajectory(motion, (x, y))


def has_way(trajectory: Trajectory, motion: str, space: tuple[float, float], *, frame: int) -> bool:
    """Return whether an object could move in a direction from `frame` on without turning at an edge soon."""
    across, along = (trajectory.at(np.array([frame]))[0] - MIDDLE) / space
    return {"left": across, "right": -across, "up": along, "down": -along}.get(motion, 1.0) > -0.2


def refit(trajectory: Trajectory, before: tuple[float, float], after: tuple[float, float]) -> Trajectory:
    """Scale a path from the room `before` to the room `after`."""
    ratio = after[0] / before[0], after[1] / before[1]
    x, y = (MIDDLE[axis] + (trajectory.centre[axis] - MIDDLE[axis]) * ratio[axis] for axis in (0, 1))
    return replace(trajectory, centre=(x, y), reach=(trajectory.reach[0] * ratio[0], trajectory.reach[1] * ratio[1]))


def turn_to(
    trajectory: Trajectory, motion: str, space: tuple[float, float], *, frame: int, length: float
) -> Trajectory:
    """Return a path of another motion through the place of `trajectory` at `frame`, as near as `space` allows.

    `length` as in `draw_trajectory`.
    """
    here = trajectory.at(np.array([frame]))[0]
    x, y = (float(np.clip(here[axis], MIDDLE[axis] - space[axis], MIDDLE[axis] + space[axis])) for axis in (0, 1))
    period = _period(motion, length)
    back = frame / period
    across, along = (x - MIDDLE[0]) / space[0], (y - MIDDLE[1]) / space[1]
    if motion in ("left", "right"):
        phase = _swing_phase(across) if motion == "right" else 1 - _swing_phase(across)
        return Trajectory(motion, (MIDDLE[0], y), (space[0], 0.0), period, phase - back)
    if motion in ("up", "down"):
        phase = _swing_phase(along) if motion == "down" else 1 - _swing_phase(along)
        return Trajectory(motion, (x, MIDDLE[1]), (0.0, space[1]), period, phase - back)
    if motion == "circling":
        wide = 20.0
        centre = float(np.clip(x, MIDDLE[0] - space[0] + wide, MIDDLE[0] + space[0] - wide))
        angle = float(np.arctan2(along, (x - centre) / wide))
        return Trajectory(motion, (centre, MIDDLE[1]), (wide, space[1]), period, angle / (2 * np.pi) - back)
    if motion == "bouncing":
        falling = 0.5 + 0.5 * float(np.sqrt((1 + along) / 2))
        return Trajectory(motion, (x, MIDDLE[1]), (0.0, space[1]), period, falling - back)
    return Trajectory(motion, (x, y))
