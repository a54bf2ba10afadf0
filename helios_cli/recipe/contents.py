"""Reads the films of a file, or of standard input: recipes, plain text and shot lists of other tools."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from helios_cli.recipe.cues import shots_from
from helios_cli.recipe.files import MAX_BYTES, SOURCES, SUFFIXES, decode, picture_advice, read_text
from helios_cli.recipe.film import Film, slug
from helios_cli.recipe.habits import as_shot_list
from helios_cli.recipe.lists import READERS, Draft, read_updates
from helios_cli.recipe.problems import Problems, RecipeError
from helios_cli.recipe.text import read_cues
from helios_cli.recipe.trees import read_tree
from helios_cli.recipe.validate import recipe_from


def films_of_file(path: Path, problems: Problems) -> list[Film]:
    """Return the films of a file, named after it. RecipeError for what is wrong in it."""
    return _films(_drafts(path, problems), path, problems)


def films_of_stream(stream: BinaryIO) -> list[Film]:
    """Return the film of plain text. RecipeError for what is wrong in it."""
    problems = Problems("standard input")
    return _films(_text_draft(decode(stream.read(MAX_BYTES + 1), problems), problems), Path("stdin"), problems)


def _drafts(path: Path, problems: Problems) -> list[Draft]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        advice = SOURCES + "; plain text can also come from - (standard input)"
        problems.refuse("unknown kind of file", suggestion=picture_advice(path) or advice)
    text = read_text(path, problems)
    if suffix == ".txt":
        return _text_draft(text, problems)
    if suffix in READERS:
        return READERS[suffix](text, problems)
    tree, lines = read_tree(text, suffix, problems)
    if isinstance(tree, list) and suffix == ".json":
        return read_updates(tree, lines, problems)
    return [Draft(tree, lines, suffix=suffix)]


def _text_draft(text: str, problems: Problems) -> list[Draft]:
    text, notices = as_shot_list(text, problems)
    problems.stop()
    return [Draft(*shots_from(read_cues(text, problems), problems), notices)]


def _films(drafts: list[Draft], path: Path, problems: Problems) -> list[Film]:
    """Validate the drafts of one file; the problems of all are raised together."""
    if not any(draft.suffix or draft.tree["shot"] for draft in drafts):
        problems.stop()
        problems.refuse("contains no prompt", suggestion="write what the film shows")
    films = []
    for draft in drafts:
        own = Problems(problems.file)
        try:
            recipe = recipe_from(draft.tree, draft.lines, own, suffix=draft.suffix)
        except RecipeError:
            reported = {(problem.line, problem.shot) for problem in problems.all}
            problems.all += [problem for problem in own.all if (problem.line, problem.shot) not in reported]
            continue
        name = draft.stem or (f"{path.stem}-{slug(draft.name)}" if draft.name else path.stem)
        folder = Path(os.path.abspath(path.parent))
        films.append(Film(name, problems.file, recipe, folder, tuple(draft.notices), draft.lines))
    problems.all.sort(key=lambda problem: problem.line or 0)
    problems.stop()
    return films
