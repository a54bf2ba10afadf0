"""From what stands on the command line to films: every form of SOURCE is recognised here."""

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
from helios_cli.recipe.habits import as_shot_list
from helios_cli.recipe.lists import READERS, Draft, read_updates
from helios_cli.recipe.problems import Problem, Problems, RecipeError
from helios_cli.recipe.text import begins_with_time, read_cues
from helios_cli.recipe.trees import read_tree
from helios_cli.recipe.validate import recipe_from
from helios_cli.visible import printable, without_hidden

WORDS = "the prompt"
"""What a quoted prompt is called in messages."""

RECIPES = (".toml", ".yaml", ".yml", ".json")
SUFFIXES = (*RECIPES, ".txt", *READERS)

_FILE_NAME = re.compile(r"[^.]\.[a-z][a-z0-9]{1,4}$", re.IGNORECASE)
"""The end of a word that is the name of a file rather than a prompt."""

_PATH = re.compile(r"(?:~|\.{0,2})/\S+$")
"""One word that can only be a path, however long."""

MAX_PATH = 4096


def read_films(sources: Sequence[str], *, stdin: BinaryIO | None = None) -> list[Film]:
    """The films of all sources, in order. RecipeError holds the problems of all of them.

    A `.csv` or `.jsonl` source may give several films. `stdin` is read for the source `-`, as UTF-8.
    """
    films: list[Film] = []
    problems: list[Problem] = []
    if list(sources).count("-") > 1:
        problems.append(Problem("-", "standard input can be read only once"))
    for source in dict.fromkeys(sources) if problems else sources:
        try:
            films += _told_apart(_read(source, stdin), films)
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return films


def _read(source: str, stdin: BinaryIO | None) -> list[Film]:
    if source == "-":
        problems = Problems("standard input")
        data = (stdin or sys.stdin.buffer).read(MAX_BYTES + 1)
        return _films(_text_draft(decode(data, problems), problems), "stdin", Path.cwd(), problems)
    problems = Problems(printable(source, 200))
    path = Path(source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # longer than any path, or with a NUL
        is_file = is_folder = False
    if not source.strip():  # a path of no characters is the folder here
        return _read_words(source)
    if is_file:
        return _read_file(path, problems)
    _refuse_path(path, source, is_folder, problems)
    return _read_words(source)


def _read_file(path: Path, problems: Problems) -> list[Film]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        suggestion = "sources end in " + ", ".join(SUFFIXES) + "; plain text also comes through - (standard input)"
        problems.add("unknown kind of file", suggestion=_picture_advice(path) or suggestion)
        problems.stop()
    text = read_text(path, problems)
    if suffix == ".txt":
        drafts = _text_draft(text, problems)
    elif suffix in RECIPES:
        tree, lines = read_tree(text, suffix, problems)
        if isinstance(tree, list) and suffix == ".json":
            drafts = read_updates(tree, lines, problems)
        else:
            recipe = recipe_from(tree, lines, problems, suffix=suffix)
            return [Film(path.stem, problems.file, recipe, Path(os.path.abspath(path.parent)), lines=lines)]
    else:
        drafts = READERS[suffix](text, problems)
    return _films(drafts, path.stem, Path(os.path.abspath(path.parent)), problems)


def _text_draft(text: str, problems: Problems) -> list[Draft]:
    text, notices = as_shot_list(text, problems)
    problems.stop()
    tree, lines = shots_from(read_cues(text, problems), problems)
    return [Draft("", tree, lines, notices)]


def _films(drafts: list[Draft], stem: str, folder: Path, problems: Problems) -> list[Film]:
    """Validate drafts of one file; problems of all are raised together."""
    if not drafts or not any(draft.tree["shot"] for draft in drafts):
        if not problems.found:
            problems.add("holds no prompt", suggestion="write what the film shows")
        problems.stop()
    films = []
    for draft in drafts:
        one = Problems(problems.file)
        try:
            recipe = recipe_from(draft.tree, draft.lines, one)
        except RecipeError:
            known = {(problem.line, problem.shot) for problem in problems.found}
            problems.found += [problem for problem in one.found if (problem.line, problem.shot) not in known]
            continue
        name = f"{stem}-{_slug(draft.name)}" if draft.name else stem
        films.append(Film(name, problems.file, recipe, folder, tuple(draft.notices), draft.lines))
    problems.found.sort(key=lambda problem: problem.line or 0)
    problems.stop()
    return films


def _read_words(source: str) -> list[Film]:
    """A prompt in quotes: one shot, taken as it is."""
    problems = Problems(WORDS)
    recipe = recipe_from({"shot": [{"prompt": source}]}, {}, problems)
    notices = ()
    if begins_with_time(source):
        notices = ("a quoted prompt is one shot: times in brackets are read from a .txt file or from - only",)
    return [Film(_slug(source), WORDS, recipe, Path.cwd(), notices)]


def _told_apart(films: list[Film], before: list[Film]) -> list[Film]:
    """A quoted prompt that begins like others `before` it is a film with a number behind its name."""
    if len(films) != 1 or films[0].source != WORDS or any(films[0].recipe == film.recipe for film in before):
        return films
    name, names, number = films[0].name, {film.name for film in before}, 1
    while films[0].name in names:
        number += 1
        films = [replace(films[0], name=f"{name}-{number}")]
    return films


def _refuse_path(path: Path, source: str, is_folder: bool, problems: Problems) -> None:
    """Raise if `source`, which is no file, was meant as one: nobody wants a film of the words `boat.toml`."""
    if is_folder:
        problems.add("is a folder", suggestion="name a file in it; to render the word itself, pass it through -")
    elif is_meant_as_path(source):
        listed = "sources end in " + ", ".join(SUFFIXES) + '; a prompt needs no file: helios render "A boat."'
        message, suggestion = absence(path, SUFFIXES, listed) or ("is not a file", None)
        problems.add(message, suggestion=_picture_advice(path) or suggestion)
    problems.stop()


def is_meant_as_path(words: str) -> bool:
    """Whether words, which are no name of a file that is there, look like one."""
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
    clip = "a clip is continued with --video; a film of helios is made again with --from"
    return clip if path.suffix.lower() in CLIPS else None


def _slug(words: str) -> str:
    """Words as a file name: `A red circle!` becomes `a-red-circle`."""
    slug = "-".join(re.findall(r"\w+", words[:400].lower()))
    while len(slug.encode()) > 60:  # some file systems count bytes; leave room for suffixes
        slug = slug[:-1]
    return slug.strip("-_") or "film"
