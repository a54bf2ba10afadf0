"""Captions of the toy world: a grammar of plain sentences, and a parser for them.

Every word is one token of `helios_cli.bench.specs`, and no caption has more than 24 tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from helios_cli.train.world.palette import COLOURS, SCENES
from helios_cli.train.world.scene import Backdrop, Scene, Segment, Thing

MAX_TOKENS = 24
"""Including the end of the sentence."""

NOUNS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
PACES = {"slow": ("slowly", "gently"), "quick": ("quickly", "fast")}

MOVES = {
    "left": "moves left|moves to the left|goes left|slides left|glides to the left|drifts left|is moving left|"
    "floats to the left|flies left|goes to the left|is going left|moves leftward",
    "right": "moves right|moves to the right|goes right|slides right|glides to the right|drifts right|is moving right|"
    "floats to the right|flies right|goes to the right|is going right|moves rightward",
    "up": "moves up|rises|goes up|climbs up|floats up|flies up|is moving up|is rising|moves upward|drifts upward",
    "down": "moves down|falls|goes down|sinks|drops down|floats down|is moving down|is falling|moves downward|"
    "drifts downward",
    "circling": "moves in circles|circles around|is circling|goes around in circles|orbits|flies in circles|"
    "is moving in circles|circles",
    "bouncing": "bounces|bounces up and down|is bouncing|jumps up and down|is jumping|goes up and down|jumps",
    "still": "stays still|stands still|rests|is still|stays there|is not moving|stands there",
}
ROLLS = {
    "left": "rolls left|rolls to the left|is rolling left",
    "right": "rolls right|rolls to the right|is rolling right",
}
"""Moves of round objects only."""

PLACES = {
    "hills": "over green hills|over the green hills|across green hills|above green hills|over the hills|"
    "over green hills and a blue sky",
    "sea": "over the blue sea|above the blue sea|over the sea|over a blue ocean|above the ocean|over blue water|"
    "over the blue sea and sky",
    "night": "at night|in the night sky|in a dark night|under the stars|in the dark night sky|at night under the moon",
    "gradient": "over a {0} gradient|on a {0} gradient|over a {0} gradient background|on a gradient of {0}",
    "plain": "over a {0} background|on a {0} background|over a plain {0} background|on {0}|over {0}|"
    "before a {0} background|on plain {0}|with a {0} background",
}
BEFORE = {
    "hills": "green hills|the green hills|a scene of green hills|green hills and blue sky",
    "sea": "the blue sea|a blue sea|the sea|blue ocean|a scene at sea",
    "night": "night|a dark night|a night sky|night sky and stars",
    "gradient": "a {0} gradient|{0} gradient background",
    "plain": "{0} background|a {0} background|plain {0} background|a plain {0} background|{0}",
}
"""Backgrounds as a caption that begins with one names them."""


@dataclass(frozen=True)
class Attributes:
    """The attributes that a caption names; None for those that it leaves open.

    `background` is one of palette.BACKGROUNDS; `colour`, `shape` and `motion` are those of the object.
    """

    background: str | None
    colour: str | None
    shape: str | None
    motion: str | None


def caption(scene: Scene, seed: int) -> str:
    """Return a caption of the scene's first segment; the seed picks the words."""
    return describe(scene.segments[0], seed)


def caption_with_labels(scene: Scene, seed: int) -> tuple[str, Attributes]:
    """Return a caption, and the attributes of its background and first object."""
    return caption(scene, seed), labels(scene.segments[0])


def labels(segment: Segment) -> Attributes:
    """Return the true attributes of a segment."""
    thing = segment.things[0]
    return Attributes(segment.backdrop.name, thing.colour, thing.shape, thing.motion)


def describe(segment: Segment, seed: int) -> str:
    """Return a caption of one segment."""
    dice = np.random.default_rng([seed, segment.start])
    text = _sentence(dice, segment)
    for addition in _additions(dice, segment):
        if tokens_of(text + addition) <= MAX_TOKENS:
            text += addition
    return text


def tokens_of(text: str) -> int:
    """Count the tokens of a caption in the words of this world, including the end of the sentence."""
    return len(re.findall(r"\w+|,", text)) + 1


def _sentence(dice: np.random.Generator, segment: Segment) -> str:
    thing, backdrop = segment.things[0], segment.backdrop
    noun = str(dice.choice(NOUNS[thing.shape]))
    what, does = _what(dice, thing, noun), _does(dice, thing, noun)
    form = dice.random()
    if form < 0.62:
        return f"{what} {does} {_pick(dice, PLACES[backdrop.kind], backdrop)}"
    before = _pick(dice, BEFORE[backdrop.kind], backdrop)
    if form < 0.82:
        return f"{before}, {what} {does}"
    if form < 0.92:
        return f"{_pick(dice, PLACES[backdrop.kind], backdrop)} {what} {does}"
    return f"{what} {_pick(dice, PLACES[backdrop.kind], backdrop)}, it {does}"


def _additions(dice: np.random.Generator, segment: Segment) -> list[str]:
    """Return the additions of a rich scene: the second object, the camera, the light."""
    additions = []
    for thing in segment.things[1:]:
        noun = str(dice.choice(NOUNS[thing.shape]))
        additions.append(f", with {'an' if thing.colour == 'orange' else 'a'} {thing.colour} {noun}")
    if segment.camera and segment.backdrop.kind in SCENES:
        move, way = segment.camera.move.split()
        additions.append(f", the camera {move}s {way}")
    if segment.nightfall and segment.backdrop.kind in SCENES:
        additions.append(str(dice.choice([", day becomes night", " as day turns to night"])))
    return additions


def _what(dice: np.random.Generator, thing: Thing, noun: str) -> str:
    size = f"{dice.choice(SIZES[thing.size])} " if thing.size else ""
    words = f"{size}{thing.colour} {noun}"
    article = "the" if dice.random() < 0.12 else "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}"


def _does(dice: np.random.Generator, thing: Thing, noun: str) -> str:
    moves = MOVES[thing.motion].split("|")
    if thing.shape == "circle" and thing.motion in ROLLS and (noun == "ball" or dice.random() < 0.3):
        moves = moves[:3] + ROLLS[thing.motion].split("|")
    does = str(dice.choice(moves))
    return f"{does} {dice.choice(PACES[thing.pace])}" if thing.pace else does


def _pick(dice: np.random.Generator, phrases: str, backdrop: Backdrop) -> str:
    phrase = str(dice.choice(phrases.split("|"))).format(backdrop.colour)
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase)


_MOTION_WORDS = {
    "circling": r"in circles|around|circling|circles|orbit\w*",
    "bouncing": r"bounc\w+|jump\w*|up and down",
    "still": r"still|rest\w*|stay\w*|stand\w*|not moving",
    "left": r"left\w*",
    "right": r"right\w*",
    "up": r"up\w*|ris\w+|climb\w*",
    "down": r"down\w*|fall\w*|sink\w*|drop\w*",
}
"""Tried in this order."""

_SCENE_WORDS = {"hills": r"hills?", "night": r"night|stars|moon", "sea": r"sea|ocean|water"}


_ADDITIONS = re.compile(
    rf",? with an? (?:{'|'.join(COLOURS)}) (?:{'|'.join(noun for names in NOUNS.values() for noun in names)})\b"
    r"|,? the camera \w+ \w+|,? (?:as )?day (?:becomes|turns to) night"
)


def attributes(text: str) -> Attributes:
    """Parse a caption of this world, or one written by hand in its words."""
    text = _ADDITIONS.sub("", text.lower())
    nouns = {noun: shape for shape, names in NOUNS.items() for noun in names}
    colours = "|".join(COLOURS)
    thing = re.search(rf"\b(?:({colours}) )?({'|'.join(nouns)})\b", text)
    rest = text[: thing.start()] + text[thing.end() :] if thing else text
    background = _first(_SCENE_WORDS, rest)
    if background is None and (found := re.search(rf"\b({colours})\b", rest)):
        background = found[1]
    return Attributes(
        background=background,
        colour=thing[1] if thing else None,
        shape=nouns[thing[2]] if thing else None,
        motion=_first(_MOTION_WORDS, rest),
    )


def _first(patterns: dict[str, str], text: str) -> str | None:
    return next((name for name, pattern in patterns.items() if re.search(rf"\b(?:{pattern})\b", text)), None)
