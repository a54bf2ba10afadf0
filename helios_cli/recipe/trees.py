"""Reads TOML, YAML and JSON into plain values, with the line of every key.

`tomllib` and `json` decide what is valid; the lines come from a second, lenient walk over the text. YAML has a module
of its own (`yaml_tree`).
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress

from helios_cli.recipe.files import add_odd_character
from helios_cli.recipe.problems import Place, Problems

MAX_KEY_DOTS = 32

Tree = tuple[object, dict[Place, int]]


def read_tree(text: str, suffix: str, problems: Problems) -> Tree:
    """Return values and lines of a `.toml`, `.yaml` or `.json` text. RecipeError if it is not valid."""
    try:
        tree = _reader(suffix)(text, problems)
    except RecursionError:
        problems.refuse("brackets are nested too deeply for a recipe")
    problems.stop()
    return tree


def _reader(suffix: str) -> Callable[[str, Problems], Tree]:
    readers = {".toml": _read_toml, ".json": _read_json}
    if suffix in readers:
        return readers[suffix]
    from helios_cli.recipe.yaml_tree import read_yaml  # PyYAML is slow to import, and few recipes are in YAML

    return read_yaml


def _read_toml(text: str, problems: Problems) -> Tree:
    walk = _Walk(text)
    with suppress(_Lost):
        walk.document()
    if walk.long_key:
        problems.refuse(f"a key has more than {MAX_KEY_DOTS} dots", line=walk.long_key)
    try:
        return tomllib.loads(text), walk.lines
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        message = str(error).partition(" (at ")[0] + (f", column {at[2]}" if at else " at the end of the file")
        if not add_odd_character(text, [line], problems):
            problems.add(f"not valid TOML: {message}", line=line, suggestion=_toml_advice(text.split("\n")[line - 1]))
    except ValueError as error:  # a number with more digits than Python reads, a date that does not exist
        problems.add(f"not valid TOML: {error}")
    return None, {}


def _toml_advice(line: str) -> str | None:
    """Return what to write for the slips that TOML's own messages do not explain."""
    if re.match(r"\s*[\w-]+\s*:", line):
        return 'TOML writes key = value, with text in quotes: prompt = "A boat leaves."'
    return 'put text in quotes: prompt = "A boat leaves."' if re.match(r"\s*[\w-]+\s*=\s*[A-Za-z]", line) else None


def _read_json(text: str, problems: Problems) -> Tree:
    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    walk = _Walk(text)
    try:
        value = json.loads(text, parse_constant=constant)
        with suppress(_Lost):
            walk.value(())
    except json.JSONDecodeError as error:
        if not add_odd_character(text, [error.lineno], problems):
            problems.add(f"not valid JSON: {error.msg}, column {error.colno}", line=error.lineno)
        return None, {}
    except ValueError as error:
        problems.refuse(f"not valid JSON: {error}")
    for line, key in walk.repeated:
        problems.add("the key is given twice", line=line, key=key)
    return value, walk.lines


_STRING = r"""\"(?:\\.|[^"\\\n])*\"|'[^'\n]*'"""
_GAP = re.compile(r"(?:[\s,]|#[^\n]*)*")
_KEY = re.compile(rf"[ \t]*({_STRING}|[^\s\[\]{{}}=.,:#\"']+)[ \t]*")
_SIGN = re.compile(r"\s*[=:]")
_SCALAR = re.compile(rf'"""(?:\\.|[^\\])*?"{{3,5}}|\'\'\'.*?\'{{3,5}}|{_STRING}|[^\[\]{{}},#\n"\']+', re.DOTALL)
_HEADING_END = re.compile(r"\]{1,2}")


class _Lost(Exception):
    """The text is not valid here."""


class _Walk:
    """A walk through a TOML or JSON text that notes the line of each place. It checks nothing, and ends at a fault."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.line_ends = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[Place, int] = {(): 1}
        self.repeated: list[tuple[int, str]] = []
        self.long_key: int | None = None
        """Line of a key with more dots than any has: `tomllib` takes minutes for tens of thousands."""
        self.num_tables: dict[Place, int] = {}  # so far under each [[name]]

    def document(self) -> None:
        """Walk through a TOML text."""
        table: Place = ()
        while sign := self.peek():
            if sign == "[":
                table = self.heading()
            else:
                self.pair(table)

    def heading(self) -> Place:
        """Walk over `[name]`, or `[[name]]`, which begins the next table of its array; return the table's place."""
        is_array = self.text.startswith("[[", self.at)
        self.at += 1 + is_array
        *outer, name = self.key()
        place = self.inside((), outer + [name] * (not is_array))
        if is_array:
            place = (*place, name)
            self.note(place)
            self.num_tables[place] = self.num_tables.get(place, 0) + 1
            place = (*place, self.num_tables[place] - 1)
        self.note(place)
        self.take(_HEADING_END)
        return place

    def pair(self, table: Place) -> None:
        """Walk over a key and its value."""
        names = self.key()
        place = self.inside(table, names)
        if place in self.lines:
            self.repeated.append((self.line, names[-1]))
        self.note(place)
        self.take(_SIGN)
        self.value(place)

    def value(self, place: Place) -> None:
        sign = self.peek()
        self.note(place)
        if sign not in ("[", "{"):
            self.take(_SCALAR)
            return
        self.at += 1
        index = 0
        while self.peek() not in ("]", "}"):
            if sign == "{":
                self.pair(place)
            else:
                self.value((*place, index))
            index += 1
        self.at += 1

    def inside(self, table: Place, names: list[str]) -> Place:
        """Return the place of `names` below `table`, through the latest table of each array of tables on the way."""
        place = table
        for name in names:
            place = (*place, name)
            if place in self.num_tables:
                place = (*place, self.num_tables[place] - 1)
        return place

    def key(self) -> list[str]:
        names: list[str] = []
        while not names or self.text.startswith(".", self.at):
            self.at += bool(names)
            names.append(_unquoted(self.take(_KEY)[1]))
            if len(names) > MAX_KEY_DOTS + 1:
                self.long_key = self.line
                raise _Lost
        return names

    @property
    def line(self) -> int:
        return bisect_left(self.line_ends, self.at) + 1

    def note(self, place: Place) -> None:
        self.lines.setdefault(place, self.line)

    def peek(self) -> str:
        """Return the next character after space, comments and commas; "" at the end."""
        self.take(_GAP)
        return self.text[self.at : self.at + 1]

    def take(self, form: re.Pattern[str]) -> re.Match[str]:
        match = form.match(self.text, self.at)
        if match is None:
            raise _Lost
        self.at = match.end()
        return match


def _unquoted(word: str) -> str:
    if word[0] == '"':
        with suppress(ValueError):  # TOML has escapes that JSON does not have, none of which a key needs
            return json.loads(word)
    return word[1:-1] if word[0] in "'\"" else word
