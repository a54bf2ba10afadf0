"""From plain values to a Recipe; what is wrong is said in the user's terms, at the user's line."""

from __future__ import annotations

import json

from pydantic import ValidationError

from helios_cli.errors import in_our_words
from helios_cli.recipe.film import Lines, Place, line_of
from helios_cli.recipe.problems import Problems, nearest
from helios_cli.recipe.schema import Recipe, Shot
from helios_cli.recipe.values import TRANSITIONS
from helios_cli.visible import printable

FILM_KEYS = tuple(field.alias or name for name, field in Recipe.model_fields.items())
SHOT_KEYS = tuple(Shot.model_fields)

_FORMS = {".toml": "{key} = {value}", ".yaml": "{key}: {value}", ".yml": "{key}: {value}", ".json": '"{key}": {value}'}


def recipe_from(tree: object, lines: Lines, problems: Problems, *, suffix: str = "") -> Recipe:
    """The recipe that `tree` holds; all its problems are raised together. `suffix` is the syntax suggestions are in."""
    if not isinstance(tree, dict):
        message = "holds nothing" if tree is None else f"holds {_kind(tree)}, where keys and values were expected"
        problems.add(message, suggestion="`helios recipe schema` describes a recipe")
        problems.stop()
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        for found in error.errors(include_url=False):  # `Problems.add` stops at MAX_FOUND
            _add(found, lines, problems, suffix)
    problems.found.sort(key=lambda problem: problem.line or 0)
    problems.stop()
    return recipe


def _add(error: dict, lines: Lines, problems: Problems, suffix: str) -> None:
    place: Place = error["loc"]
    in_shot = len(place) >= 2 and place[0] == "shot"
    shot = place[1] + 1 if in_shot else None
    key = str(place[2]) if in_shot and len(place) > 2 else str(place[0]) if place and not in_shot else None
    message, suggestion = _said(error, key, in_shot, suffix)
    problems.add(message, line=line_of(lines, place), shot=shot, key=key, suggestion=suggestion)


def _said(error: dict, key: str | None, in_shot: bool, suffix: str) -> tuple[str, str | None]:
    """Message and suggestion for one of pydantic's errors."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    example = _example(key, in_shot, suffix)
    if kind == "extra_forbidden":
        return "unknown key", _instead(key, in_shot, suffix)
    if kind == "missing":
        return "is missing", example
    if kind == "clash":
        return context["message"], example if key == "shot" else None
    if kind == "value_error":
        return str(context["error"]), None
    if kind == "literal_error":
        word = nearest(value, TRANSITIONS) if isinstance(value, str) else None
        return (
            f"must be {context['expected']}, not {_shown(value)}",
            f"write {_written(key, word, suffix)}" if word else example,
        )
    if kind == "string_too_long" or (kind == "too_long" and isinstance(value, str)):
        return f"is {len(value):,} characters long, the most is {context['max_length']:,}", None
    if kind == "too_long":
        return f"{len(value):,} shots, the most is {context['max_length']:,}", "split the film into several recipes"
    if kind == "tuple_type":
        return f"must be a list of shots, not {_kind(value)}", example
    if kind in ("model_type", "dict_type"):
        return f"must hold keys and values, not {_kind(value)}", _example("prompt", True, suffix)
    return f"{in_our_words(error['msg'])}, not {_shown(value)}", example


def _instead(key: str, in_shot: bool, suffix: str) -> str:
    """What was meant by an unknown key."""
    own, other = (SHOT_KEYS, FILM_KEYS) if in_shot else (FILM_KEYS, SHOT_KEYS)
    if key in other:
        return (
            f"`{key}` belongs to the film: move it above the first shot" if in_shot else f"`{key}` belongs into a shot"
        )
    if near := nearest(key, own):
        return f"write `{near}`"
    if near := nearest(key, other):
        return f"did you mean `{near}` of {'the film' if in_shot else 'a shot'}?"
    return "the keys here are " + ", ".join(own)


def _example(key: str | None, in_shot: bool, suffix: str) -> str | None:
    if key == "shot":
        return {
            ".toml": 'begin each shot with [[shot]], then prompt = "..."',
            ".json": 'write "shot": [{"prompt": "..."}]',
        }.get(suffix, "write shot: and below it one - prompt: ... for each shot")
    field = (Shot if in_shot else Recipe).model_fields.get(key or "")
    if field is None or not field.examples:
        return None
    return f"write {_written(key, field.examples[0], suffix)}"


def _written(key: str, value: object, suffix: str) -> str:
    return "`" + _FORMS.get(suffix, "{key}: {value}").format(key=key, value=json.dumps(value)) + "`"


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a single table"
    names = {
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "nothing",
    }
    return names.get(type(value), "a date")


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f'"{printable(value, 40)}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**30):
        return str(value)
    return _kind(value)
