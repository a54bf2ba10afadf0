"""Reads YAML into plain values, with the line of every key.

PyYAML's parser decides what is valid. Values are made from its events, and of these only text, numbers, booleans and
null; an alias may stand for one such value only, so that no document grows beyond its file.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

from helios_cli.recipe.files import add_odd_character
from helios_cli.recipe.problems import Place, Problems
from helios_cli.visible import printable

MAX_DEPTH = 8
"""Collections within collections; a recipe needs three."""

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


def read_yaml(text: str, problems: Problems) -> tuple[object, dict[Place, int]]:
    """Return values and lines of a YAML text; what is wrong with it goes to `problems`."""
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
