"""The recipe next to a live film, which grows with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from helios_cli.errors import InputError
from helios_cli.film.sidecar import replace_text
from helios_cli.film.target import Target
from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.files import MAX_BYTES
from helios_cli.recipe.film import Film
from helios_cli.recipe.schema import MAX_SHOTS
from helios_cli.recipe.sources import read_films

MARK = "# Written by `helios live`"


def recipe_path(target: Target) -> Path:
    """Return `boat.toml` for `boat.mp4` and for the folder `boat`."""
    return target.path.with_name(f"{target.path.name if target.kind == 'png' else target.path.stem}.toml")


def begun_film(path: Path, target: Target, *, force: bool) -> Film | None:
    """Return the film of the recipe that an unfinished live film left, to go on with; None for a new one.

    InputError if the recipe would replace another file, or there is an unfinished film without one; `force` allows
    both.
    """
    if force:
        return None
    is_ours = is_live(path)
    if path.exists() and not is_ours:
        raise InputError(f"{path} exists, and helios live did not write it", hint="add --force, or choose another -o")
    if not target.journal.exists():
        return None
    if not is_ours:
        raise InputError(f"there is an unfinished film at {target.partial}", hint="add --force to start over")
    return read_films([os.path.relpath(path)])[0]


def is_live(path: Path) -> bool:
    """Return whether `helios live` wrote the file."""
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


@dataclass(frozen=True)
class RecipeFile:
    """The recipe of a live film, and the command that renders the film from it."""

    path: Path
    command: str

    def write(self, film: Film) -> None:
        """Write the recipe atomically. InputError if it could not be read again, MachineError from the disk."""
        text = f"{MARK}. To finish the film, or to make it again:\n#   {self.command}\n\n"
        text += write_recipe(film, "toml", self.path.parent)
        if len(film.recipe.shots) > MAX_SHOTS or len(text.encode()) > MAX_BYTES:
            raise InputError(f"{self.path} has reached the limit for a recipe")
        replace_text(self.path, text)
