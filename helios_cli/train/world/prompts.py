"""Prompts for judging a model: combinations that its training has seen, and combinations that no training prompt names.

A clip's later chunks may show an unnamed combination, when an object has turned at an edge; its prompt names the first
direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helios_cli.train.world.captions import Attributes, describe, labels
from helios_cli.train.world.palette import MOTIONS, SPLITS
from helios_cli.train.world.scene import draw_segment


@dataclass(frozen=True)
class Prompt:
    """A caption, what its film should show, and whether its colour, shape and motion are unseen in training."""

    caption: str
    expected: Attributes
    unseen: bool


def prompts(n: int = 64, seed: int = 0) -> list[Prompt]:
    """Return `n` prompts, alternately unseen and seen, with all motions as equally frequent as possible."""
    dice = np.random.default_rng([seed, n])
    orders = {split: _in_turn(dice, SPLITS[split]) for split in ("held_out", "train")}
    made: list[Prompt] = []
    for number in range(n):
        split = ("held_out", "train")[number % 2]
        segment = draw_segment(dice, orders[split][number // 2 % len(orders[split])])
        made.append(Prompt(describe(segment, int(dice.integers(2**31))), labels(segment), split == "held_out"))
    return made


def pairs(n: int, seed: int = 0) -> list[tuple[Prompt, Prompt]]:
    """Return `n` pairs of prompts that differ in background and in colour."""
    made: list[tuple[Prompt, Prompt]] = []
    number = 0
    while len(made) < n:
        first, second = prompts(2, seed + number)
        number += 1
        here, there = first.expected, second.expected
        if here.background != there.background and here.colour != there.colour:
            made.append((first, second))
    return made


def _in_turn(dice: np.random.Generator, combinations: tuple) -> list[tuple[str, str, str]]:
    """Shuffle all combinations, with one of each motion after another as long as there are any."""
    shuffled = [combinations[index] for index in dice.permutation(len(combinations))]
    by_motion = {motion: [one for one in shuffled if one[2] == motion] for motion in MOTIONS}
    rounds = max(len(ones) for ones in by_motion.values())
    return [ones[turn] for turn in range(rounds) for ones in by_motion.values() if turn < len(ones)]
