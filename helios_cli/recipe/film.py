"""A film as it was read from a source: its recipe, and the line of each part of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helios_cli.recipe.problems import Lines, line_of, where
from helios_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Film:
    """One film to render.

    Attributes:
        name: stem of the output's file name.
        source: name of the source in messages.
        recipe: shots and settings; pictures as they were written.
        folder: absolute folder that the recipe's pictures are relative to.
        notices: decisions of the reader that the user should know.
        lines: line of each place of the source.
    """

    name: str
    source: str
    recipe: Recipe
    folder: Path
    notices: tuple[str, ...] = ()
    lines: Lines = field(default_factory=dict, repr=False)

    def picture(self, written: str) -> Path:
        """Return the absolute path of a picture or clip: never a URL or an option to the program that opens it."""
        return Path(os.path.abspath(self.folder / written))

    def line(self, *place: str | int) -> int | None:
        """Return the line of `place`."""
        return line_of(self.lines, place)

    def where(self, *place: str | int) -> dict[str, Any]:
        """Return `line`, `shot` and `key` of a problem with the value at `place`."""
        return where(self.lines, place)


def slug(words: str) -> str:
    """Return words as a file name: `A red circle!` becomes `a-red-circle`."""
    slug = "-".join(re.findall(r"\w+", words[:400].lower()))
    while len(slug.encode()) > 60:  # some file systems count bytes; leave room for suffixes
        slug = slug[:-1]
    return slug.strip("-_") or "film"
