"""The names of the toy world, their colours, and the combinations of names that no prompt in training has."""

from __future__ import annotations

import zlib
from itertools import product

COLOURS = {
    "red": (218, 38, 44),
    "green": (44, 160, 70),
    "blue": (36, 92, 216),
    "yellow": (250, 214, 52),
    "orange": (244, 128, 24),
    "purple": (134, 56, 176),
    "white": (244, 244, 242),
    "black": (24, 24, 28),
}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("left", "right", "up", "down", "circling", "bouncing", "still")

SCENES = {
    "hills": ("red", "yellow", "orange", "purple", "black"),
    "sea": ("red", "yellow", "orange", "purple", "black"),
    "night": ("red", "green", "yellow", "orange", "white"),
}
"""Scenes, and the colours of objects that stand out against every part of them."""

BACKGROUNDS = (*COLOURS, *SCENES)

_ALIKE = (("red", "orange"), ("orange", "yellow"), ("blue", "purple"), ("yellow", "white"), ("purple", "black"))


def stands_out(colour: str, background: str) -> bool:
    """Return whether an object of this colour is clearly visible on a plain colour or a scene."""
    if background in SCENES:
        return colour in SCENES[background]
    return colour != background and (colour, background) not in _ALIKE and (background, colour) not in _ALIKE


CONTRASTS = {colour: tuple(name for name in COLOURS if stands_out(colour, name)) for colour in COLOURS}
"""The plain backgrounds that an object of each colour may have."""

COMBINATIONS = tuple(product(COLOURS, SHAPES, MOTIONS))
HELD_OUT_PERCENT = 16


def held_out(colour: str, shape: str, motion: str) -> bool:
    """Return whether no prompt in training has this combination. Each pair of the three occurs in training."""
    return zlib.crc32(f"the {colour} {shape} {motion}".encode()) % 100 < HELD_OUT_PERCENT


SPLITS = {
    "train": tuple(one for one in COMBINATIONS if not held_out(*one)),
    "held_out": tuple(one for one in COMBINATIONS if held_out(*one)),
}
