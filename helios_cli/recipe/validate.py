"""Turns plain values into a Recipe; errors are worded for the user and name the user's line."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from helios_cli.errors import in_our_words
from helios_cli.recipe.problems import Lines, Problems, nearest, where
from helios_cli.recipe.schema import LoraEntry, Recipe, Shot
from helios_cli.recipe.values import kind_of, shown

FILM_KEYS = tuple(field.alias or name for name, field in Recipe.model_fields.items())
SHOT_KEYS = tuple(Shot.model_fields)

_FORMS = {".toml": "{key} = {value}", ".json": '"{key}": {value}'}
_SHOT_FORMS = {
    ".toml": 'begin each shot with [[shot]], then prompt = "..."',
    ".json": 'write "shot": [{"prompt": "..."}]',
}


def recipe_from(tree: object, lines: Lines, problems: Problems, *, suffix: str = "") -> Recipe:
    """Return the recipe in `tree`; all its problems are raised together. Suggestions are in the syntax of `suffix`."""
    if not isinstance(tree, dict):
        message = "is empty" if tree is None else f"contains {kind_of(tree)}, where keys and values were expected"
        problems.refuse(message, suggestion="`helios recipe schema` describes a recipe")
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            place = where(lines, fault["loc"])
            if fault["loc"][0] == "lora":
                message, suggestion = _in_lora(fault, suffix)
            else:
                message, suggestion = _in_words(fault, place["key"], place["shot"] is not None, suffix)
            problems.add(message, **place, suggestion=suggestion)
    problems.all.sort(key=lambda problem: problem.line or 0)
    problems.stop()
    return recipe


def _in_words(fault: Any, key: str | None, in_shot: bool, suffix: str) -> tuple[str, str | None]:
    """Return message and suggestion for one of pydantic's errors."""
    kind, value, context = fault["type"], fault["input"], fault.get("ctx", {})
    example = _example(key, in_shot, suffix)
    match kind:
        case "extra_forbidden":
            return "unknown key", _instead(key or "", in_shot)
        case "missing":
            return "is missing", example
        case "value_error":
            return str(context["error"]), example if key == "shot" else None
        case "literal_error":
            words = re.findall(r"'(\w+)'", context["expected"])
            word = nearest(value, words) if isinstance(value, str) else None
            advice = f"write {_written(str(key), word, suffix)}" if word else example
            return f"must be {context['expected']}, not {shown(value)}", advice
        case "too_long" if not isinstance(value, str):
            return (
                f"has {len(value):,} shots; the limit is {context['max_length']:,}",
                "split the film into several recipes",
            )
        case "string_too_long" | "too_long":
            return f"is {len(value):,} characters long; the limit is {context['max_length']:,}", None
        case "tuple_type":
            return f"must be a list of shots, not {kind_of(value)}", example
        case "model_type" | "dict_type":
            return f"must hold keys and values, not {kind_of(value)}", _example("prompt", True, suffix)
    return f"{in_our_words(fault['msg'])}, not {shown(value)}", example


def _in_lora(fault: Any, suffix: str) -> tuple[str, str | None]:
    """Return message and suggestion for an error in the list of LoRA files."""
    _, *place = fault["loc"]
    example, value = _example("lora", False, suffix), fault["input"]
    match fault["type"], place:
        case "tuple_type", []:
            return f"must be a list of files, not {kind_of(value)}", example
        case "too_long", []:
            return f"has {len(value):,} files; the limit is {fault['ctx']['max_length']:,}", None
        case "extra_forbidden", [index, str(key)]:
            near = nearest(key, LoraEntry.model_fields)
            return f"file {index + 1} has the unknown key `{key}`", f"write `{near}`" if near else example
        case "missing", [index, *_]:
            return f"file {index + 1} has no `path`", example
        case "model_type" | "dict_type", [index, *_]:
            return f"file {index + 1} must hold keys and values, not {kind_of(value)}", example
        case _, [index, *rest]:
            message, _ = _in_words(fault, None, False, suffix)
            return f"file {index + 1}: " + " ".join([*(f"`{key}`" for key in rest[:1]), message]), example
    return _in_words(fault, "lora", False, suffix)


def _instead(key: str, in_shot: bool) -> str:
    """Return the suggestion for an unknown key."""
    own, other = (SHOT_KEYS, FILM_KEYS) if in_shot else (FILM_KEYS, SHOT_KEYS)
    if key in other:
        return f"`{key}` belongs " + ("to the film: move it above the first shot" if in_shot else "in a shot")
    if near := nearest(key, own):
        return f"write `{near}`"
    if near := nearest(key, other):
        return f"did you mean `{near}` of {'the film' if in_shot else 'a shot'}?"
    return "the keys here are " + ", ".join(own)


def _example(key: str | None, in_shot: bool, suffix: str) -> str | None:
    if key == "shot":
        return _SHOT_FORMS.get(suffix, "write shot: and below it one - prompt: ... for each shot")
    field = (Shot if in_shot else Recipe).model_fields.get(key or "")
    return f"write {_written(key, field.examples[0], suffix)}" if key and field and field.examples else None


def _written(key: str, value: object, suffix: str) -> str:
    return "`" + _FORMS.get(suffix, "{key}: {value}").format(key=key, value=json.dumps(value)) + "`"
