"""Reads films from the sources on the command line: every form of SOURCE is recognised here.

`recipe.contents`, which reads files, is imported when there is one: a quoted prompt does not wait for it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from helios_cli.recipe.files import CLIPS, PICTURES, SOURCES, SUFFIXES, absence, picture_advice
from helios_cli.recipe.film import Film, slug
from helios_cli.recipe.problems import Problem, Problems, RecipeError
from helios_cli.recipe.validate import recipe_from
from helios_cli.visible import printable, without_hidden

WORDS = "the prompt"
"""Name of a quoted prompt in messages."""

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
        from helios_cli.recipe.contents import films_of_stream

        return films_of_stream(stdin or sys.stdin.buffer)
    is_file, is_folder = os.path.isfile(source), os.path.isdir(source)
    if not (is_file or is_folder or is_meant_as_path(source)):  # nobody wants a film of the words `boat.toml`
        return _read_words(source)
    problems, path = Problems(printable(source, 200)), Path(source)
    if is_file:
        from helios_cli.recipe.contents import films_of_file

        return films_of_file(path, problems)
    if is_folder:
        problems.refuse("is a folder", suggestion="name a file in it; to render the word itself, pass it through -")
    advice = SOURCES + '; a prompt needs no file: helios render "A boat."'
    message, suggestion = absence(path, SUFFIXES, advice) or ("is not a file", None)
    problems.refuse(message, suggestion=picture_advice(path) or suggestion)


def _read_words(source: str) -> list[Film]:
    """Return the film of a quoted prompt: one shot, taken as it is."""
    recipe = recipe_from({"shot": [{"prompt": source}]}, {}, Problems(WORDS))
    notices: tuple[str, ...] = ()
    if source.lstrip().startswith("["):  # as every time does
        from helios_cli.recipe.text import begins_with_time

        if begins_with_time(source):
            notices = ("a quoted prompt is one shot: times in brackets are read only from a .txt file or from -",)
    return [Film(slug(source), WORDS, recipe, Path.cwd(), notices)]


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
