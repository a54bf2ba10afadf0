"""Prompts to judge a model by: combinations that its training has seen, and those that no prompt of it names.

A clip's later chunks may show such a combination, where an object has turned at an edge; its prompt says the way it set
out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helios_cli.train.world.grammar import Attributes, describe, labels
from helios_cli.train.world.palette import MOTIONS, SPLITS
from helios_cli.train.world.scene import draw_segment


@dataclass(frozen=True)
class Prompt:
    """A caption, what its film should show, and whether no prompt in training has its colour, shape and motion."""

    caption: str
    expected: Attributes
    unseen: bool


def prompts(n: int = 64, seed: int = 0) -> list[Prompt]:
    """`n` prompts, unseen and seen in turn; each motion comes as often as any other, as far as that can be."""
    dice = np.random.default_rng([seed, n])
    orders = {split: _in_turn(dice, SPLITS[split]) for split in ("held_out", "train")}
    made = []
    for number in range(n):
        split = ("held_out", "train")[number % 2]
        segment = draw_segment(dice, orders[split][number // 2 % len(orders[split])])
        made.append(Prompt(describe(segment, int(dice.integers(2**31))), labels(segment), split == "held_out"))
    return made


def pairs(n: int, seed: int = 0) -> list[tuple[Prompt, Prompt]]:
    """`n` pairs of prompts that differ in background and in colour."""
    found, number = [], 0
    while len(found) < n:
        first, second = prompts(2, seed + number)
        number += 1
        here, there = first.expected, second.expected
        if here.background != there.background and here.colour != there.colour:
            found.append((first, second))
    return found


def _in_turn(dice: np.random.Generator, combinations: tuple) -> list[tuple[str, str, str]]:
    """All combinations, shuffled, one of each motion after another while there are any."""
    shuffled = [combinations[index] for index in dice.permutation(len(combinations))]
    by_motion = {motion: [one for one in shuffled if one[2] == motion] for motion in MOTIONS}
    rounds = max(len(ones) for ones in by_motion.values())
    return [ones[turn] for turn in range(rounds) for ones in by_motion.values() if turn < len(ones)]
