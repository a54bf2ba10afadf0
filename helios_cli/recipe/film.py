"""A film as it was read from a source: its recipe, and where each part of it stands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helios_cli.recipe.schema import Recipe

Place = tuple[str | int, ...]
"""Way to a value in a recipe: `("shot", 2, "seconds")`; indices count from 0."""

Lines = Mapping[Place, int]
"""Line, from 1, of each place that has one."""


def line_of(lines: Lines, place: Place) -> int | None:
    """Line of `place`, or of the nearest thing around it that has one."""
    for end in range(len(place), -1, -1):
        if place[:end] in lines:
            return lines[place[:end]]
    return None


@dataclass(frozen=True)
class Film:
    """One film to render.

    Attributes:
        name: stem of the output's file name.
        source: the source as messages name it.
        recipe: shots and settings; pictures as they were written.
        folder: absolute folder that the recipe's pictures are relative to.
        notices: what the reader decided and the user should know.
        lines: where the source says what.
    """

    name: str
    source: str
    recipe: Recipe
    folder: Path
    notices: tuple[str, ...] = ()
    lines: Lines = field(default_factory=dict, repr=False)

    def picture(self, written: str) -> Path:
        """The absolute path of a picture or clip: never a URL or an option to the program that opens it."""
        return Path(os.path.abspath(self.folder / written))

    def line(self, *place: str | int) -> int | None:
        return line_of(self.lines, place)
