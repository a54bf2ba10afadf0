"""Reads films from the sources on the command line: every form of SOURCE is recognised here.

The readers of recipes and of plain text are imported when there is such a file: a quoted prompt does not wait for them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from helios_cli.recipe.cues import shots_from
from helios_cli.recipe.files import CLIPS, MAX_BYTES, PICTURES, absence, decode, read_text
from helios_cli.recipe.film import Film
from helios_cli.recipe.lists import READERS, Draft, read_updates
from helios_cli.recipe.problems import Problem, Problems, RecipeError
from helios_cli.recipe.validate import recipe_from
from helios_cli.visible import printable, without_hidden

WORDS = "the prompt"
"""Name of a quoted prompt in messages."""

RECIPES = (".toml", ".yaml", ".yml", ".json")
SUFFIXES = (*RECIPES, ".txt", *READERS)
_SUFFIXES = "sources end in " + ", ".join(SUFFIXES)

_FILE_NAME = re.compile(r"[^.]\.[a-z][a-z0-9]{1,4}$", re.IGNORECASE)
"""The end of a word that is the name of a file rather than a prompt."""

_PATH = re.compile(r"(?:~|\.{0,2})/\S+$")
"""One word that can only be a path, however long."""

MAX_PATH = 4096


def read_films(sources: Sequence[str], *, stdin: BinaryIO | None = None) -> list[Film]:
    """Return the films of all sources, in order. RecipeError holds the problems of all of them.

    A `.csv` or `.jsonl` source may give several films. `stdin` is read for the source `-`, as UTF-8.
    """
    films: list[Film] = []
    problems: list[Problem] = []
    if list(sources).count("-") > 1:
        problems.append(Problem("-", "standard input can be read only once"))
    for source in dict.fromkeys(sources) if problems else sources:
        try:
            films += _with_own_name(_read(source, stdin), films)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return films


def _read(source: str, stdin: BinaryIO | None) -> list[Film]:
    if source == "-":
        problems = Problems("standard input")
        data = (stdin or sys.stdin.buffer).read(MAX_BYTES + 1)
        return _films(_text_draft(decode(data, problems), problems), Path("stdin"), problems)
    if not source.strip():  # a path of no characters is the folder here
        return _read_words(source)
    problems, path = Problems(printable(source, 200)), Path(source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # longer than any path, or with a NUL
        is_file = is_folder = False
    if is_file:
        return _films(_drafts(path, problems), path, problems)
    if is_folder:
        problems.refuse("is a folder", suggestion="name a file in it; to render the word itself, pass it through -")
    if is_meant_as_path(source):  # nobody wants a film of the words `boat.toml`
        advice = _SUFFIXES + '; a prompt needs no file: helios render "A boat."'
        message, suggestion = absence(path, SUFFIXES, advice) or ("is not a file", None)
        problems.refuse(message, suggestion=_picture_advice(path) or suggestion)
    return _read_words(source)


def _drafts(path: Path, problems: Problems) -> list[Draft]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        advice = _SUFFIXES + "; plain text can also come from - (standard input)"
        problems.refuse("unknown kind of file", suggestion=_picture_advice(path) or advice)
    text = read_text(path, problems)
    if suffix == ".txt":
        return _text_draft(text, problems)
    if suffix in READERS:
        return READERS[suffix](text, problems)
    from helios_cli.recipe.trees import read_tree

    tree, lines = read_tree(text, suffix, problems)
    if isinstance(tree, list) and suffix == ".json":
        return read_updates(tree, lines, problems)
    return [Draft(tree, lines, suffix=suffix)]


def _text_draft(text: str, problems: Problems) -> list[Draft]:
    from helios_cli.recipe.habits import as_shot_list
    from helios_cli.recipe.text import read_cues

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
        name = draft.stem or (f"{path.stem}-{_slug(draft.name)}" if draft.name else path.stem)
        folder = Path(os.path.abspath(path.parent))
        films.append(Film(name, problems.file, recipe, folder, tuple(draft.notices), draft.lines))
    problems.all.sort(key=lambda problem: problem.line or 0)
    problems.stop()
    return films


def _read_words(source: str) -> list[Film]:
    """Return the film of a quoted prompt: one shot, taken as it is."""
    recipe = recipe_from({"shot": [{"prompt": source}]}, {}, Problems(WORDS))
    notices: tuple[str, ...] = ()
    if source.lstrip().startswith("["):  # as every time does
        from helios_cli.recipe.text import begins_with_time

        if begins_with_time(source):
            notices = ("a quoted prompt is one shot: times in brackets are read only from a .txt file or from -",)
    return [Film(_slug(source), WORDS, recipe, Path.cwd(), notices)]


def _with_own_name(films: list[Film], before: list[Film]) -> list[Film]:
    """Number the film of a quoted prompt that begins like others `before` it."""
    if len(films) != 1 or films[0].source != WORDS or any(films[0].recipe == film.recipe for film in before):
        return films
    name, names, number = films[0].name, {film.name for film in before}, 1
    while films[0].name in names:
        number += 1
        films = [replace(films[0], name=f"{name}-{number}")]
    return films


def is_meant_as_path(words: str) -> bool:
    """Tell whether words that name no existing file look like a path."""
    name = without_hidden(words)
    if "\n" in name or (len(name) > MAX_PATH and re.search(r"\s", name)):
        return False
    if Path(name).suffix.lower() in (*SUFFIXES, *PICTURES, *CLIPS) or _PATH.match(name):
        return True
    is_word = len(name) <= 255 and not re.search(r"\s", name)
    return is_word and bool(_FILE_NAME.search(name) or re.search(r"[/\\]", name))


def _picture_advice(path: Path) -> str | None:
    if path.suffix.lower() in PICTURES:
        return "a film starts from a picture with --image"
    clip = "a clip is continued with --video; a helios film is rendered again with --from"
    return clip if path.suffix.lower() in CLIPS else None


def _slug(words: str) -> str:
    """Return words as a file name: `A red circle!` becomes `a-red-circle`."""
    slug = "-".join(re.findall(r"\w+", words[:400].lower()))
    while len(slug.encode()) > 60:  # some file systems count bytes; leave room for suffixes
        slug = slug[:-1]
    return slug.strip("-_") or "film"
