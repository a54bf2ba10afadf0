"""Reading training config files: one TOML file, one phase. All problems are reported together, without torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from helios_cli.errors import in_our_words
from helios_cli.recipe.files import read_text
from helios_cli.recipe.problems import Place, Problems, line_of, nearest
from helios_cli.recipe.trees import read_tree
from helios_cli.train.settings import SETTINGS
from helios_cli.train.settings.run import PhaseSettings, Table
from helios_cli.visible import printable


def load(path: Path, overrides: Iterable[str] = ()) -> PhaseSettings:
    """Return the settings in the file at `path`, with `overrides` such as `loss.kl=1e-3`.

    All problems are raised together, as an InputError.
    """
    problems = Problems(str(path))
    tree, lines = read_tree(read_text(path, problems), ".toml", problems)
    places = {_override(tree, override, problems): override for override in overrides}
    problems.stop()
    if (problem := _phase_problem(tree)) is not None:
        line = line_of(lines, ("phase",)) if "phase" in tree else None
        problems.add(problem[0], line=line, key="phase", suggestion=problem[1])
        problems.stop()
    model = SETTINGS[tree["phase"]]
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            place = tuple(part for part in one["loc"] if isinstance(part, str | int))
            message, suggestion = _wording(one, place, model)
            if place in places:
                message = f"{printable(f'--set {places[place]}')}: {message}"
            line = None if place in places else line_of(lines, place)
            problems.add(message, line=line, key=".".join(map(str, place)) or None, suggestion=suggestion)
    problems.all.sort(key=lambda problem: problem.line or 0)
    problems.stop()
    raise AssertionError("a validation error without errors")


def _phase_problem(tree: dict) -> tuple[str, str] | None:
    """Return a message and a suggestion if `tree` does not name a phase."""
    phase, names = tree.get("phase"), ", ".join(sorted(SETTINGS))
    if phase is None:
        near = nearest("phase", tree)
        return "is missing", f'write `phase = "..."`{f" in place of `{near}`" if near else ""}, one of {names}'
    if isinstance(phase, str) and phase in SETTINGS:
        return None
    near = nearest(phase, sorted(SETTINGS)) if isinstance(phase, str) else None
    message = f"there is no phase {printable(repr(phase))}"
    return message, f'write `phase = "{near}"`' if near else f"write one of {names}"


def _override(tree: dict, override: str, problems: Problems) -> Place:
    """Write `loss.kl=1e-3` into `tree`, and return its place."""
    name, separator, written = override.partition("=")
    place = tuple(part.strip() for part in name.split("."))
    if not separator or not all(place):
        message = f"--set {printable(override)}: it is not KEY=VALUE"
        problems.add(message, suggestion="write for example --set optimizer.lr=1e-4")
        return place
    table = tree
    for part in place[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            problems.add(f"--set {printable(override)}: `{part}` is no table")
            return place
    try:
        table[place[-1]] = tomllib.loads(f"value = {written.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        table[place[-1]] = written.strip()  # text without quotes
    return place


def _wording(error: dict, place: Place, model: type[PhaseSettings]) -> tuple[str, str | None]:
    """Return a message and a suggestion for one of pydantic's errors."""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return "unknown key", _meant(place, model)
    if kind == "missing":
        return "is missing", f"write `{place[-1]} = ...`"
    if kind == "value_error":
        return str(error["ctx"]["error"]), None
    if kind == "too_short":
        return "the list is too short, or empty", None
    if kind in ("model_type", "dict_type"):
        return f"must be a table, not {printable(repr(value))}", f"write [{'.'.join(map(str, place))}] on a line"
    if kind == "literal_error":
        table = _table_at(model, place[:-1])
        words = _words(table.model_fields[place[-1]].annotation) if table else []
        near = nearest(value, words) if isinstance(value, str) else None
        suggestion = f'write `{place[-1]} = "{near}"`' if near else None
        return f"must be {error['ctx']['expected']}, not {printable(repr(value))}", suggestion
    message = in_our_words(error["msg"].replace("a valid string", "text in quotes"))
    return f"{message[0].lower()}{message[1:]}, not {printable(repr(value))}", _default(place, model)


def _meant(place: Place, model: type[PhaseSettings]) -> str:
    """Guess the key that an unknown one stands for."""
    table, key = _table_at(model, place[:-1]), str(place[-1])
    own = tuple(table.model_fields) if table else ()
    if near := nearest(key, own):
        return f"write `{near}`"
    for name, field in model.model_fields.items():
        inner = _table(field.annotation)
        if inner and key in inner.model_fields:
            return f"`{key}` belongs into [{name}]"
    if len(place) > 1 and key in model.model_fields:
        return f"`{key}` belongs above the first table"
    return f"the keys here are {', '.join(own)}"


def _default(place: Place, model: type[PhaseSettings]) -> str | None:
    """Name the default of the key at `place`, if it is a single value."""
    value: object = {name: field.default for name, field in model.model_fields.items()}
    for part in place:
        value = dict(value).get(part) if isinstance(value, dict | Table) else None
    return f"the default is {json.dumps(value)}" if isinstance(value, bool | int | float | str) else None


def _table_at(model: type[PhaseSettings], place: Place) -> type[Table] | None:
    """Return the model of the table at `place`, if there is one."""
    table: type[Table] | None = model
    for part in place:
        field = table.model_fields.get(str(part)) if table else None
        table = _table(field.annotation) if field else None
    return table


def _table(annotation: object) -> type[Table] | None:
    """Return the table among the types that a field may have."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Table)), None)


def _words(annotation: object) -> list[str]:
    """Return the words that a field allows."""
    if get_args(annotation) and all(isinstance(word, str) for word in get_args(annotation)):
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in _words(part)]
