"""Reads TOML, YAML and JSON into plain values, with the line of every key.

`tomllib`, `json` and PyYAML's parser decide what is valid. The lines of TOML and JSON come from a second, lenient walk
over the text, those of YAML from the parser's events: of these only text, numbers, booleans and null are made, and an
alias may stand for one such value only, so that no document grows beyond its file.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress

import yaml

from helios_cli.recipe.files import add_odd_character
from helios_cli.recipe.problems import Place, Problems
from helios_cli.visible import printable

MAX_DEPTH = 8
"""Brackets within brackets; a recipe needs three."""

MAX_KEY_DOTS = 32

Tree = tuple[object, dict[Place, int]]


def read_tree(text: str, suffix: str, problems: Problems) -> Tree:
    """Return values and lines of a `.toml`, `.yaml` or `.json` text. RecipeError if it is not valid."""
    readers: dict[str, Callable[[str, Problems], Tree]] = {".toml": _read_toml, ".json": _read_json}
    try:
        tree = readers.get(suffix, _read_yaml)(text, problems)
    except RecursionError:
        problems.refuse("brackets are nested too deeply for a recipe")
    problems.stop()
    return tree


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


_TAG = "tag:yaml.org,2002:"

YAML_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], object]]] = {
    "null": (re.compile("|~|null|Null|NULL"), lambda text: None),
    "bool": (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    "int": (
        re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
        lambda text: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
    ),
    "float": (
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
    ),
}
"""Form and reader of YAML's plain words, by the core schema of version 1.2: 010 is ten; No, on, 1:30 and dates are
text. In version 1.1 they are eight, false, true, 90 and dates, which nobody who writes a prompt or a title means."""

_YAML_ADVICE = (
    (r"\\t", "indent with spaces, not with a tab"),
    ("mapping values|start any token|block end|flow|alias|anchor|tag", 'put text in quotes: prompt: "A boat: dawn"'),
)


def _read_yaml(text: str, problems: Problems) -> Tree:
    reader = _YamlReader(text, problems)
    try:
        return reader.document(), reader.lines
    except yaml.MarkedYAMLError as error:
        marks = [mark.line + 1 for mark in (error.context_mark, error.problem_mark) if mark]
        message = error.problem or error.context or "it cannot be read"
        advice = next((advice for form, advice in _YAML_ADVICE if re.search(form, message)), None)
        around = range(max(1, marks[0] - 1), marks[-1] + 1) if marks else ()
        if not add_odd_character(text, around, problems):
            problems.add(f"not valid YAML: {message}", line=marks[-1] if marks else None, suggestion=advice)
    except yaml.YAMLError as error:
        problems.add(f"not valid YAML: {printable(error, 200)}")
    return None, {}


class _YamlReader:
    """Values and lines from the events of one YAML document."""

    def __init__(self, text: str, problems: Problems) -> None:
        self.events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.problems = problems
        self.lines: dict[Place, int] = {(): 1}
        self.scalars: dict[str, object] = {}  # by anchor

    def document(self) -> object:
        next(self.events)  # stream start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self.node(next(self.events), ())
        next(self.events)  # document end
        if not isinstance(extra := next(self.events), yaml.StreamEndEvent):
            self.refuse(extra, "a second document begins: a recipe is one")
        return value

    def node(self, event: yaml.Event, place: Place) -> object:
        self.lines.setdefault(place, event.start_mark.line + 1)
        if len(place) > MAX_DEPTH:
            raise RecursionError
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.scalars:
                name = printable(event.anchor)
                self.refuse(event, f"the alias *{name} does not stand for a single value: write the part out")
            return self.scalars.get(event.anchor)
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
            if event.anchor:
                self.scalars[event.anchor] = value
            return value
        if event.tag and not event.tag.startswith(_TAG):
            self.refuse(event, f"the tag {printable(event.tag)} is not supported: remove it")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(place)
        items: list[object] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*place, len(items))))
        return items

    def mapping(self, place: Place) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, (*place, ""))
            if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                self.refuse(event, "a key must be a word")
            name = key if isinstance(key, str) else printable(key)
            if name in values:
                self.refuse(event, "the key is given twice", key=name)
            self.lines[(*place, name)] = event.start_mark.line + 1
            values[name] = self.node(next(self.events), (*place, name))
        return values

    def scalar(self, event: yaml.ScalarEvent) -> object:
        text, kind = event.value, (event.tag or "").removeprefix(_TAG)
        if event.implicit[0]:  # a plain word
            kind = next((kind for kind, (form, _) in YAML_SCALARS.items() if form.fullmatch(text)), "str")
        if kind in ("", "!", "str"):
            return text
        if kind not in YAML_SCALARS:
            self.refuse(event, f"the tag {printable(event.tag)} is not supported: remove it")
            return text
        form, read = YAML_SCALARS[kind]
        try:
            if form.fullmatch(text):
                return read(text)
            self.refuse(event, f"{printable(text)} is not a {kind}")
        except ValueError:
            self.refuse(event, f"{printable(text)} has more digits than can be read")
        return None

    def refuse(self, event: yaml.Event, message: str, key: str | None = None) -> None:
        self.problems.add(message, line=event.start_mark.line + 1, key=key)
