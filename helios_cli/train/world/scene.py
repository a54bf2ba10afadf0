"""Scenes of the toy world: a scene is drawn at random from a seed, and determines all of its frames.

Lengths are in pixels of a film of 128 x 64, x to the right and y down; times are in frames.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from helios_cli.train.world.palette import COLOURS, CONTRASTS, SCENES, SPLITS, stands_out
from helios_cli.train.world.trajectory import (
    EXTENT,
    MARGIN,
    MIDDLE,
    Trajectory,
    draw_trajectory,
    has_way,
    refit,
    room,
    turn_to,
)

Split = Literal["train", "held_out"]
Variety = Literal["plain", "rich"]

PLACES = 16
"""Number of places that are tried for a second object, which the first one must not touch."""


@dataclass(frozen=True)
class Thing:
    """An object: `colour` and `shape` by name, `rgb` as drawn, `radius` that of a circle of its size."""

    colour: str
    shape: str
    rgb: tuple[float, float, float]
    radius: float
    trajectory: Trajectory
    size: Literal["small", "large"] | None = None
    pace: Literal["slow", "quick"] | None = None

    @property
    def motion(self) -> str:
        return self.trajectory.motion


@dataclass(frozen=True)
class Backdrop:
    """The background.

    Attributes:
        kind: "plain", "gradient", or a name of palette.SCENES.
        colour: name of the colour of a plain background or a gradient; None for a scene.
        rgb: the colour as drawn; for a gradient, its middle.
        slope: rise of a gradient from edge to edge in x and y; 1 is from black to the colour, or from it to white.
        seed: seed of a scene's details.
    """

    kind: str
    colour: str | None
    rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    slope: tuple[float, float] = (0.0, 0.0)
    seed: int = 0

    @property
    def name(self) -> str:
        """One of palette.BACKGROUNDS."""
        return self.colour or self.kind


@dataclass(frozen=True)
class Camera:
    """A camera movement: "pan left", "pan right", "zoom in" or "zoom out".

    A pan goes once around the scene in `frames`; a zoom takes `frames` to its end, and as many back.
    """

    move: str
    frames: int


@dataclass(frozen=True)
class Segment:
    """The contents of a scene from frame `start` on, with a caption of their own.

    Attributes:
        start: 0 for the first segment.
        things: objects from front to back; each segment of a scene has the same number.
        camera: None at rest; the same in each segment, like `nightfall`.
        nightfall: frames from day to night, and from night to day; None for constant light.
    """

    start: int
    backdrop: Backdrop
    things: tuple[Thing, ...]
    camera: Camera | None = None
    nightfall: int | None = None


@dataclass(frozen=True)
class Scene:
    """A film of any length. Most scenes have one segment."""

    seed: int
    segments: tuple[Segment, ...]

    @property
    def backdrop(self) -> Backdrop:
        return self.segments[0].backdrop

    @property
    def things(self) -> tuple[Thing, ...]:
        return self.segments[0].things

    @property
    def thing(self) -> Thing:
        """The object that the caption begins with."""
        return self.things[0]


def draw_scene(
    seed: int, *, split: Split = "train", variety: Variety = "plain", changes: tuple[int, ...] = ()
) -> Scene:
    """Draw the scene of a seed: a combination of `split`, on a background that its colour stands out from.

    Args:
        variety: "rich" adds second objects, a moving camera, nightfall, and bounces that drift.
        changes: rising frame numbers at which the film changes to another caption: one thing or several change, within
            the split. Up to the first change, the scene is that of the seed without changes.
    """
    rich = variety == "rich"
    dice = np.random.default_rng([seed, zlib.crc32(split.encode()), rich])
    segment = draw_segment(dice, SPLITS[split][dice.integers(len(SPLITS[split]))], drifts=rich)
    if rich:
        segment = _enrich(dice, segment, split)
    segments = [segment]
    for frame in changes:
        segments.append(_changed(dice, segments[-1], frame, split))
    return Scene(seed, tuple(segments))


def draw_segment(dice: np.random.Generator, combination: tuple[str, str, str], *, drifts: bool = False) -> Segment:
    """Draw the first segment of a plain scene with such an object. `drifts`: as in `draw_trajectory`."""
    backdrop = draw_backdrop(dice, combination[0])
    return Segment(0, backdrop, (draw_thing(dice, *combination, low=backdrop.kind == "hills", drifts=drifts),))


def draw_backdrop(dice: np.random.Generator, colour: str) -> Backdrop:
    """Draw a background for an object of this colour: plain in 76 of 100, else a gradient or a scene."""
    scenes = [name for name, colours in SCENES.items() if colour in colours]
    kind = dice.choice(["plain", "gradient", "scene"], p=[0.76, 0.08, 0.16])
    if kind == "scene" and scenes:
        return Backdrop(str(dice.choice(scenes)), None, seed=int(dice.integers(2**31)))
    name = str(dice.choice(CONTRASTS[colour]))
    rgb = shade(dice, name)
    if kind == "gradient":
        slope = float(dice.choice([-0.5, 0.5]))
        return Backdrop("gradient", name, rgb, (slope, 0.0) if dice.random() < 0.3 else (0.0, slope))
    return Backdrop("plain", name, rgb)


def shade(dice: np.random.Generator, name: str) -> tuple[float, float, float]:
    """Draw a colour of this name, a little off: only the picture before tells which."""
    light = dice.uniform(-6, 6)
    return tuple(float(np.clip(level + light + dice.uniform(-2, 2), 0, 255)) for level in COLOURS[name])


def draw_thing(
    dice: np.random.Generator, colour: str, shape: str, motion: str, *, low: bool = False, drifts: bool = False
) -> Thing:
    """Draw an object with these names. `low`: near the ground, if its motion allows that."""
    size = str(dice.choice(["small", "large", ""], p=[0.2, 0.2, 0.6]))
    radius = float(dice.uniform(*{"small": (12.0, 12.8), "large": (15.2, 16.0), "": (12.8, 15.2)}[size]))
    pace = str(dice.choice(["slow", "quick", ""], p=[0.12, 0.12, 0.76])) if motion != "still" else ""
    length = float(dice.uniform(*{"slow": (0.85, 1), "quick": (0, 0.15), "": (0.15, 0.85)}[pace]))
    trajectory = draw_trajectory(dice, motion, room(shape, radius), length=length, low=low, drifts=drifts)
    return Thing(colour, shape, shade(dice, colour), radius, trajectory, size or None, pace or None)


def _changed(dice: np.random.Generator, segment: Segment, frame: int, split: Split) -> Segment:
    """Draw the next segment: another background, colour, shape or motion, or all of these.

    Nightfall continues, so then the background stays, and the colour, which must be visible in the dark.
    """
    what = dice.choice(["background", "colour", "shape", "motion", "all"], p=[0.3, 0.25, 0.15, 0.2, 0.1])
    if segment.nightfall is not None and what not in ("shape", "motion"):
        what = dice.choice(["shape", "motion"])
    free = {"background": (), "colour": (0,), "shape": (1,), "motion": (2,), "all": (0, 1, 2)}[what]
    (thing, *others), backdrop = segment.things, segment.backdrop
    choice = [new for new in _neighbours(thing, free, frame, split) if all(new[0] != one.colour for one in others)]
    another = True
    while choice and another:
        changed = _become(dice, thing, choice.pop(dice.integers(len(choice))), frame)
        another = not all(_apart(changed, one) for one in others)
    thing = thing if another else changed
    another = (another or what == "all") and segment.nightfall is None
    shown = (thing, *others)
    while not all(stands_out(one.colour, backdrop.name) for one in shown) or (
        another and backdrop.name == segment.backdrop.name
    ):
        backdrop = draw_backdrop(dice, thing.colour)
    return replace(segment, start=frame, backdrop=backdrop, things=shown)


def _neighbours(thing: Thing, free: tuple[int, ...], frame: int, split: Split) -> list[tuple[str, str, str]]:
    """Return the combinations of `split` that differ from the thing's in exactly the `free` places and have room."""
    old = (thing.colour, thing.shape, thing.motion)
    return [
        new
        for new in SPLITS[split]
        if free
        and all((old[place] != new[place]) == (place in free) for place in range(3))
        and (new[2] == old[2] or has_way(thing.trajectory, new[2], room(thing.shape, thing.radius), frame=frame))
    ]


def _become(dice: np.random.Generator, thing: Thing, names: tuple[str, str, str], frame: int) -> Thing:
    """Return the thing with other names, continuing from where it is at this frame."""
    colour, shape, motion = names
    before, after = room(thing.shape, thing.radius), room(shape, thing.radius)
    trajectory, pace = thing.trajectory, thing.pace
    if motion != thing.motion:
        trajectory, pace = turn_to(trajectory, motion, after, frame=frame, length=float(dice.uniform(0.15, 0.85))), None
    elif shape != thing.shape:
        trajectory = refit(trajectory, before, after)
    rgb = thing.rgb if colour == thing.colour else shade(dice, colour)
    return replace(thing, colour=colour, shape=shape, rgb=rgb, trajectory=trajectory, pace=pace)


def _enrich(dice: np.random.Generator, segment: Segment, split: Split) -> Segment:
    """Add a second object, a moving camera and nightfall, each to some segments."""
    backdrop, thing = segment.backdrop, segment.things[0]
    if dice.random() < 0.35 and (companion := _companion(dice, thing, backdrop, split)):
        segment = replace(segment, things=(thing, companion))
    if backdrop.kind in SCENES and dice.random() < 0.5:
        move = str(dice.choice(["pan left", "pan right", "zoom in", "zoom out"]))
        segment = replace(segment, camera=Camera(move, int(dice.integers(160, 320))))
    if backdrop.kind in ("hills", "sea") and thing.colour in SCENES["night"] and dice.random() < 0.4:
        segment = replace(segment, nightfall=int(dice.integers(120, 240)))
    return segment


def _companion(dice: np.random.Generator, thing: Thing, backdrop: Backdrop, split: Split) -> Thing | None:
    """Draw a small resting object that the first one never covers; None if `split` or the picture has no room."""
    choice = [
        (colour, shape)
        for colour, shape, motion in SPLITS[split]
        if motion == "still" and colour != thing.colour and stands_out(colour, backdrop.name)
    ]
    if not choice:
        return None
    colour, shape = choice[dice.integers(len(choice))]
    rgb, radius = shade(dice, colour), float(dice.uniform(6, 7))
    space = room(shape, radius)
    for _ in range(PLACES):
        x, y = (MIDDLE[axis] + space[axis] * float(dice.uniform(-1, 1)) for axis in (0, 1))
        companion = Thing(colour, shape, rgb, radius, Trajectory("still", (x, y)))
        if _apart(thing, companion):
            return companion
    return None


def _apart(thing: Thing, resting: Thing) -> bool:
    """Return whether the boxes around both stay MARGIN apart along the whole path of the thing."""
    away = np.abs(thing.trajectory.round_trip() - resting.trajectory.centre)
    reach = [sum(one.radius * EXTENT[one.shape][axis] for one in (thing, resting)) + MARGIN for axis in (0, 1)]
    return bool((away > reach).any(axis=1).all())
