"""TOML, YAML and JSON as plain values, with the line of every key.

`tomllib` and `json` decide what is valid and what it means; the line index is made by a second, lenient pass over text
that is known to be valid. YAML is built from parser events: nothing is constructed but text, numbers, booleans and
null, and an alias may stand for one such value only, so that no document grows beyond its file.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator

import yaml

from helios_cli.recipe.files import add_odd_character
from helios_cli.recipe.film import Place
from helios_cli.recipe.problems import Problems
from helios_cli.visible import printable

MAX_DEPTH = 8
"""Brackets within brackets; a recipe needs three."""

MAX_KEY_DOTS = 32

Tree = tuple[object, dict[Place, int]]


def read_tree(text: str, suffix: str, problems: Problems) -> Tree:
    """Values and lines of a `.toml`, `.yaml` or `.json` text. What is wrong with it is raised by `problems`."""
    readers: dict[str, Callable[[str, Problems], Tree]] = {".toml": _read_toml, ".json": _read_json}
    try:
        tree = readers.get(suffix, _read_yaml)(text, problems)
    except RecursionError:
        problems.add("brackets are nested too deeply: this is no recipe")
    problems.stop()
    return tree


def _read_toml(text: str, problems: Problems) -> Tree:
    if line := _long_key(text):
        problems.add(f"a key has more than {MAX_KEY_DOTS} dots: this is no recipe", line=line)
        return None, {}
    try:
        return tomllib.loads(text), _toml_lines(text)
    except tomllib.TOMLDecodeError as error:
        line, message = _split_toml_error(str(error), text)
        if add_odd_character(text, [line], problems):
            return None, {}
        problems.add(f"not valid TOML: {message}", line=line, suggestion=_toml_advice(text, line))
    except ValueError as error:  # a number with more digits than Python reads, a date that does not exist
        problems.add(f"not valid TOML: {error}")
    return None, {}


def _split_toml_error(message: str, text: str) -> tuple[int, str]:
    match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if match is None:
        return text.count("\n") + 1, message.removesuffix(" (at end of document)") + " at the end of the file"
    return int(match[1]), f"{message[: match.start()]}, column {match[2]}"


def _toml_advice(text: str, line: int) -> str | None:
    """The three slips that TOML's own messages do not explain."""
    written = text.split("\n")[line - 1] if line <= text.count("\n") + 1 else ""
    if re.match(r"\s*[\w-]+\s*:", written):
        return 'TOML writes key = value, with text in quotes: prompt = "A boat leaves."'
    if re.match(r"\s*[\w-]+\s*=\s*[A-Za-z]", written):
        return 'put text in quotes: prompt = "A boat leaves."'
    return None


def _read_json(text: str, problems: Problems) -> Tree:
    def constant(name: str) -> None:
        raise ValueError(f"{name} is not a number")

    try:
        value = json.loads(text, parse_constant=constant)
    except json.JSONDecodeError as error:
        if not add_odd_character(text, [error.lineno], problems):
            problems.add(f"not valid JSON: {error.msg}, column {error.colno}", line=error.lineno)
        return None, {}
    except ValueError as error:
        problems.add(f"not valid JSON: {error}")
        return None, {}
    lines, repeated = _json_lines(text)
    for line, key in repeated:
        problems.add("the key is given twice", line=line, key=key)
    return value, lines


class _Cursor:
    """Where a pass over a document stands: the place of the value that comes next, and the brackets around it."""

    def __init__(self) -> None:
        self.place: Place = ()
        self.lines: dict[Place, int] = {(): 1}
        self.repeated: list[tuple[int, str]] = []
        self.open: list[tuple[Place, bool]] = []

    @property
    def in_table(self) -> bool:
        return bool(self.open) and not self.open[-1][1]

    def value(self, line: int) -> None:
        self.lines.setdefault(self.place, line)

    def key(self, names: tuple[str, ...], line: int) -> None:
        base = self.open[-1][0]
        self.place = (*base, *names)
        if self.place in self.lines:
            self.repeated.append((line, names[-1]))
        self.lines.setdefault(self.place, line)

    def enter(self, array: bool, line: int) -> None:
        self.value(line)
        self.open.append((self.place, array))
        if array:
            self.place = (*self.place, 0)

    def next_item(self) -> None:
        base, array = self.open[-1]
        self.place = (*base, self.place[len(base)] + 1) if array else base

    def leave(self) -> None:
        self.place = self.open.pop()[0]


_JSON_TOKEN = re.compile(r'(?P<string>"(?:\\.|[^"\\])*")|(?P<mark>[\[\]{},:])|(?P<line>\n)|(?P<bare>[^\s\[\]{},:"]+)')


def _json_lines(text: str) -> tuple[dict[Place, int], list[tuple[int, str]]]:
    """Lines of all places of a valid JSON text, and (line, key) of keys that are given twice."""
    cursor, line, last = _Cursor(), 1, ""
    for token in _JSON_TOKEN.finditer(text):
        kind, word = token.lastgroup, token[0]
        if kind == "line":
            line += 1
        elif kind == "mark" and word in "[{":
            cursor.enter(word == "[", line)
        elif kind == "mark" and word in "]}":
            cursor.leave()
        elif word == "," and kind == "mark":
            cursor.next_item()
        elif kind == "string" and cursor.in_table and cursor.place == cursor.open[-1][0]:
            last = json.loads(word)
            cursor.key((last,), line)
        elif kind != "mark":
            cursor.value(line)
    return cursor.lines, cursor.repeated


_TOML_TOKEN = re.compile(
    r'(?P<text>"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5})'
    r"""|(?P<string>"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
    r"|(?P<comment>\#[^\n]*)|(?P<line>\n)|(?P<mark>[\[\]{},=.])|(?P<bare>[^\s\[\]{},=.\#\"']+)"
    r"""|(?P<open>["'])""",  # begins text that never ends
    re.DOTALL,
)


def _long_key(text: str) -> int | None:
    """Line of a key with more dots than any has. `tomllib` takes minutes for tens of thousands."""
    line, dots = 1, 0
    for token in _TOML_TOKEN.finditer(text):
        if token[0] == ".":
            dots += 1
            if dots > MAX_KEY_DOTS:
                return line
        elif token.lastgroup == "open":  # the parser will stop here, and so must a search that begins at each quote
            return None
        elif token.lastgroup not in ("bare", "string"):
            dots = 0
        line += token[0].count("\n")
    return None


def _toml_lines(text: str) -> dict[Place, int]:
    """Lines of all places of a valid TOML text."""
    cursor, line = _Cursor(), 1
    table: Place = ()
    counts: dict[Place, int] = {}  # tables so far under each [[name]]
    names: list[str] = []  # of the key or heading that is being read
    heading = 0  # square brackets of the heading that is open
    doubled = False  # whether it had two
    in_value = False
    for token in _TOML_TOKEN.finditer(text):
        kind, word = token.lastgroup, token[0]
        reading_key = not in_value or (cursor.in_table and cursor.place == cursor.open[-1][0])
        if kind == "line":
            if not heading and not cursor.open:
                in_value, names = False, []
            line += 1
        elif heading and word == "]" and kind == "mark":
            heading -= 1
            if heading == 0:
                table = _toml_table(tuple(names), counts, double=doubled)
                cursor.lines.setdefault(table, line)
                if doubled:
                    cursor.lines.setdefault(table[:-1], line)
                in_value = True  # nothing but a comment may follow on this line
        elif not in_value and word == "[" and kind == "mark":
            heading += 1
            doubled, names = heading == 2, []
        elif reading_key and kind in ("bare", "string"):
            names.append(word if kind == "bare" else _toml_string(word))
        elif reading_key and word == "=":
            if cursor.open:
                cursor.key(tuple(names), line)
            else:
                cursor.place = _inside(table, tuple(names), counts)
                cursor.lines.setdefault(cursor.place, line)
            in_value, names = True, []
        elif kind == "mark" and word in "[{":
            cursor.enter(word == "[", line)
        elif kind == "mark" and word in "]}":
            cursor.leave()
        elif kind == "mark" and word == ",":
            cursor.next_item()
        elif kind in ("text", "string", "bare") and not heading:
            cursor.value(line)
        line += word.count("\n") if kind == "text" else 0
    return cursor.lines


def _toml_table(names: tuple[str, ...], counts: dict[Place, int], *, double: bool) -> Place:
    """The place that a heading opens; `[[shot]]` opens the next of its kind."""
    if not double:
        return _inside((), names, counts)
    array = (*_inside((), names[:-1], counts), names[-1])
    counts[array] = counts.get(array, 0) + 1
    return (*array, counts[array] - 1)


def _inside(table: Place, names: tuple[str, ...], counts: dict[Place, int]) -> Place:
    """`names` below `table`, going into the latest table of each array of tables on the way."""
    place = table
    for name in names:
        place = (*place, name)
        if place in counts:
            place = (*place, counts[place] - 1)
    return place


def _toml_string(word: str) -> str:
    return word[1:-1] if word[0] == "'" else tomllib.loads(f"x = {word}")["x"]


_TAG = "tag:yaml.org,2002:"

YAML_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], object]]] = {
    "null": (re.compile("|~|null|Null|NULL"), lambda text: None),
    "bool": (re.compile("true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    "int": (re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), lambda text: int(text, _base(text))),
    "float": (
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
        lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text)),
    ),
}
"""What a plain word of YAML is, by the core schema of version 1.2: 010 is ten; No, on, 1:30 and dates are text. By that
of 1.1 they are eight, false, true, 90 and dates, which nobody who writes a prompt or a title means."""


def _base(text: str) -> int:
    return {"0o": 8, "0x": 16}.get(text[:2], 10)


_YAML_ADVICE = (
    (r"\\t", "indent with spaces, not with a tab"),
    ("mapping values|start any token|block end|flow|alias|anchor|tag", 'put text in quotes: prompt: "A boat: dawn"'),
)


def _read_yaml(text: str, problems: Problems) -> Tree:
    events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    builder = _YamlBuilder(events, problems)
    try:
        return builder.document(), builder.lines
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


class _YamlBuilder:
    """Values and lines from the events of one YAML document."""

    def __init__(self, events: Iterator[yaml.Event], problems: Problems) -> None:
        self.events = events
        self.problems = problems
        self.lines: dict[Place, int] = {(): 1}
        self.scalars: dict[str, object] = {}

    def document(self) -> object:
        next(self.events)  # stream start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self.node(next(self.events), ())
        next(self.events)  # document end
        extra = next(self.events)
        if not isinstance(extra, yaml.StreamEndEvent):
            self.problems.add("a second document begins: a recipe is one", line=extra.start_mark.line + 1)
        return value

    def node(self, event: yaml.Event, place: Place) -> object:
        line = event.start_mark.line + 1
        self.lines.setdefault(place, line)
        if len(place) > MAX_DEPTH:
            raise RecursionError
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, line)
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event, line)
            if event.anchor:
                self.scalars[event.anchor] = value
            return value
        if event.tag and not event.tag.startswith("tag:yaml.org,2002:"):
            self.problems.add(f"the tag {printable(event.tag)} is not read: remove it", line=line)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(place)
        return self.mapping(place)

    def alias(self, event: yaml.AliasEvent, line: int) -> object:
        if event.anchor not in self.scalars:
            message = f"the alias *{printable(event.anchor)} stands for no single value: write the part out"
            self.problems.add(message, line=line)
        return self.scalars.get(event.anchor)

    def scalar(self, event: yaml.ScalarEvent, line: int) -> object:
        plain, text = event.implicit[0], event.value
        asked = (event.tag or "").removeprefix(_TAG)
        if plain:
            asked = next((kind for kind, (form, _) in YAML_SCALARS.items() if form.fullmatch(text)), "str")
        if asked in ("", "!", "str"):
            return text
        if asked not in YAML_SCALARS:
            self.problems.add(f"the tag {printable(event.tag)} is not read: remove it", line=line)
            return text
        form, read = YAML_SCALARS[asked]
        try:
            return read(text) if form.fullmatch(text) else self._none(text, asked, line)
        except ValueError:  # more digits than Python reads
            return self._none(text, "number that is read", line)

    def _none(self, text: str, kind: str, line: int) -> None:
        self.problems.add(f"{printable(text)} is not a {kind}", line=line)

    def sequence(self, place: Place) -> list:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*place, len(items))))
        return items

    def mapping(self, place: Place) -> dict:
        keys: dict = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            key = self.node(event, (*place, ""))
            if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                self.problems.add("a key must be a word", line=line)
            name = key if isinstance(key, str) else printable(key)
            if name in keys:
                self.problems.add("the key is given twice", line=line, key=name)
            self.lines[(*place, name)] = line
            keys[name] = self.node(next(self.events), (*place, name))
        return keys
