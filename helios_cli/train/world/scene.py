"""What is to be seen, with all numbers decided: a scene is drawn from a seed, and any frame of it from the scene.

Lengths are in pixels of a film of 128 x 64, x to the right and y down; times are in frames.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from helios_cli.train.world.palette import COLOURS, CONTRASTS, SCENES, SPLITS, stands_out
from helios_cli.train.world.tracks import EXTENT, MARGIN, MIDDLE, Track, draw_track, has_way, refit, room, turn_to

Split = Literal["train", "held_out"]
Variety = Literal["plain", "rich"]

PLACES = 16
"""That are tried for a second object, until the first one leaves it alone in one of them."""


@dataclass(frozen=True)
class Thing:
    """An object: `colour` and `shape` by name, `rgb` as drawn, `radius` that of a circle of its size."""

    colour: str
    shape: str
    rgb: tuple[float, float, float]
    radius: float
    track: Track
    size: Literal["small", "large"] | None = None
    pace: Literal["slow", "quick"] | None = None

    @property
    def motion(self) -> str:
        return self.track.motion


@dataclass(frozen=True)
class Backdrop:
    """What is behind the objects.

    Attributes:
        kind: "plain", "gradient", or a name of palette.SCENES.
        colour: name of the colour of a plain or a gradient; None for a scene.
        rgb: as drawn, the middle of a gradient.
        slope: of a gradient from edge to edge in x and y: 1 from black to the colour, or from the colour to white.
        seed: of a scene's details.
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
    """How the view moves: "pan left", "pan right", "zoom in" or "zoom out".

    A pan goes once around the scene in `frames`; a zoom takes as long to its end, and again back.
    """

    move: str
    frames: int


@dataclass(frozen=True)
class Segment:
    """What is to be seen from frame `start` on, with a caption of its own.

    Attributes:
        start: 0 for the first.
        things: from front to back; as many in each segment of a scene.
        camera: None at rest; the same in each segment, as is `nightfall`.
        nightfall: frames from day to night and again from night to day; None where light stays as it is.
    """

    start: int
    backdrop: Backdrop
    things: tuple[Thing, ...]
    camera: Camera | None = None
    nightfall: int | None = None


@dataclass(frozen=True)
class Scene:
    """A film of any length. Most have one segment."""

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
    """The scene of a seed: a combination of `split`, on a background that its colour stands out from.

    Args:
        variety: "rich" adds second objects, a moving camera, nightfall, and bounces that drift.
        changes: frames, rising, at each of which the film takes up another caption: something of what is to be seen
            changes, within the split. The scene before the first change is that of the seed without changes.
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
    """The first segment of a plain scene with such an object. `drifts`: as in `draw_track`."""
    backdrop = draw_backdrop(dice, combination[0])
    return Segment(0, backdrop, (draw_thing(dice, *combination, low=backdrop.kind == "hills", drifts=drifts),))


def draw_backdrop(dice: np.random.Generator, colour: str) -> Backdrop:
    """A background for an object of this colour: plain in 76 of 100, else a gradient or a scene."""
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
    """A colour of this name: a little off, so that only the picture before tells which."""
    light = dice.uniform(-6, 6)
    return tuple(float(np.clip(level + light + dice.uniform(-2, 2), 0, 255)) for level in COLOURS[name])


def draw_thing(
    dice: np.random.Generator, colour: str, shape: str, motion: str, *, low: bool = False, drifts: bool = False
) -> Thing:
    """An object of these names. `low`: near the ground where its motion leaves that open."""
    size = str(dice.choice(["small", "large", ""], p=[0.2, 0.2, 0.6]))
    radius = float(dice.uniform(*{"small": (12.0, 12.8), "large": (15.2, 16.0), "": (12.8, 15.2)}[size]))
    pace = str(dice.choice(["slow", "quick", ""], p=[0.12, 0.12, 0.76])) if motion != "still" else ""
    length = float(dice.uniform(*{"slow": (0.85, 1), "quick": (0, 0.15), "": (0.15, 0.85)}[pace]))
    track = draw_track(dice, motion, room(shape, radius), length=length, low=low, drifts=drifts)
    return Thing(colour, shape, shade(dice, colour), radius, track, size or None, pace or None)


def _changed(dice: np.random.Generator, segment: Segment, frame: int, split: Split) -> Segment:
    """The segment that follows: another background, colour, shape or motion, or all of these.

    Where night falls it goes on falling: the place stays, and the colour, which has to be seen in the dark.
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
    """The combinations of `split` that differ from the thing's in just the `free` places, and have room to move."""
    old = (thing.colour, thing.shape, thing.motion)
    return [
        new
        for new in SPLITS[split]
        if free
        and all((old[place] != new[place]) == (place in free) for place in range(3))
        and (new[2] == old[2] or has_way(thing.track, new[2], room(thing.shape, thing.radius), frame=frame))
    ]


def _become(dice: np.random.Generator, thing: Thing, names: tuple[str, str, str], frame: int) -> Thing:
    """The thing with other names, going on from where it is at this frame."""
    colour, shape, motion = names
    before, after = room(thing.shape, thing.radius), room(shape, thing.radius)
    track, pace = thing.track, thing.pace
    if motion != thing.motion:
        track, pace = turn_to(track, motion, after, frame=frame, length=float(dice.uniform(0.15, 0.85))), None
    elif shape != thing.shape:
        track = refit(track, before, after)
    rgb = thing.rgb if colour == thing.colour else shade(dice, colour)
    return replace(thing, colour=colour, shape=shape, rgb=rgb, track=track, pace=pace)


def _enrich(dice: np.random.Generator, segment: Segment, split: Split) -> Segment:
    """The segment with a second object, a moving camera, nightfall: each in some."""
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
    """A small object at rest that the first one never covers; None where `split` has none or no place was found."""
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
        companion = Thing(colour, shape, rgb, radius, Track("still", (x, y)))
        if _apart(thing, companion):
            return companion
    return None


def _apart(thing: Thing, resting: Thing) -> bool:
    """Whether the boxes around both stay MARGIN from each other, wherever the path takes the thing."""
    away = np.abs(thing.track.round_trip() - resting.track.centre)
    reach = [sum(one.radius * EXTENT[one.shape][axis] for one in (thing, resting)) + MARGIN for axis in (0, 1)]
    return bool((away > reach).any(axis=1).all())
