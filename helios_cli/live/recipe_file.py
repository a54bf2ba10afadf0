"""The recipe that stands beside a live film and grows with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helios_cli.errors import InputError
from helios_cli.film.record import replace_text
from helios_cli.film.target import Target
from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.files import MAX_BYTES
from helios_cli.recipe.film import Film
from helios_cli.recipe.schema import MAX_SHOTS

MARK = "# Written by `helios live`"


def recipe_path(target: Target) -> Path:
    """`boat.toml` beside `boat.mp4`, and beside the folder `boat`."""
    return target.path.with_name(f"{target.path.name if target.kind == 'png' else target.path.stem}.toml")


def check_recipe(path: Path, target: Target, how_to_finish: str, *, force: bool) -> None:
    """Find before a film whether its recipe may be written. InputError if that is somebody else's file, or if it is of
    a film that can still be finished; `force` allows both."""
    if force:
        return
    is_ours = is_live(path)
    if path.exists() and not is_ours:
        raise InputError(f"{path} exists, and helios live did not write it", hint="add --force, or choose another -o")
    if target.journal.exists():
        hint = f"{how_to_finish} finishes it; --force begins anew" if is_ours else "add --force to begin anew"
        raise InputError(f"an unfinished film stands at {target.partial}", hint=hint)


def is_live(path: Path) -> bool:
    """Whether `helios live` wrote the file."""
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


@dataclass(frozen=True)
class RecipeFile:
    """Where a live film's recipe stands, and the command that renders the film from it."""

    path: Path
    command: str

    def write(self, film: Film) -> None:
        """Put the recipe there, whole. InputError for one that could not be read again, MachineError from the disk."""
        text = f"{MARK}. To finish the film, or to make it again:\n#   {self.command}\n\n"
        text += write_recipe(film, "toml", self.path.parent)
        if len(film.recipe.shots) > MAX_SHOTS or len(text.encode()) > MAX_BYTES:
            raise InputError(f"{self.path} is as long as a recipe may be")
        replace_text(self.path, text)
