"""Values as people write them, in flags and in recipes: durations, sizes, steps. All parsers raise InputError."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from datetime import date, time
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from helios_cli.errors import InputError
from helios_cli.units import size_multiple
from helios_cli.visible import printable

LENGTH_KEYS = ("seconds", "minutes", "frames")
"""Units of a film's length, of which one is given."""

MAX_SECONDS = 24 * 3600.0
"""Longest film, in seconds."""

DEFAULT_BLEND_SECONDS = 4.0

Transition = Literal["blend", "switch", "cut"]
TRANSITIONS: tuple[str, ...] = get_args(Transition)

MAX_FPS = 120.0
MAX_FRAMES = int(MAX_SECONDS * MAX_FPS)
MAX_SIDE = 4096
"""Longest side of a picture, in pixels; far beyond what the models were trained at."""

MAX_STEPS = 1000
MAX_SEED = 2**63 - 1

MAX_WORKERS = 1024
Workers = int | Literal["auto"]

EXPORT_FORMS = ("otio", "edl")

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_CLOCK = re.compile(rf"(?:([0-9]+):)?([0-9]+):({_NUMBER})")
_UNITS = re.compile(rf"(?:({_NUMBER})\s*h)?\s*(?:({_NUMBER})\s*m)?\s*(?:({_NUMBER})\s*s?)?")
_BYTES = re.compile(rf"({_NUMBER})\s*([KMGTkmgt])(i?)[Bb]?")
_SIZE = re.compile(r"([0-9]{1,6})\s*[xX×]\s*([0-9]{1,6})")

DURATION_FORMS = "write 90, 90s, 1m30s, 0:05 or 1:02:03"


def parse_time(value: object) -> float:
    """Return a time or a length in seconds, which may be 0: `90`, `"90s"`, `"1m30s"`, `"0:05"`, `"1:02:03"`."""
    seconds = _seconds_of(value)
    if seconds is None or seconds < 0:
        hint = "write decimals with a point: 2.5" if re.fullmatch("[0-9]+,[0-9]+ *s?", str(value)) else DURATION_FORMS
        raise InputError(f"{shown(value)} is not a time", hint=hint)
    if seconds > MAX_SECONDS:
        raise InputError(f"{shown(value)} is longer than 24 hours, the limit for a film")
    return seconds


def parse_duration(value: object) -> float:
    """Return a length in seconds, more than zero and at most 24 hours; the forms are those of `parse_time`."""
    seconds = parse_time(value)
    if seconds == 0:
        raise InputError("a length must be more than 0 seconds", hint=DURATION_FORMS)
    return seconds


def parse_bytes(value: object) -> int:
    """Return an amount of memory: `6G` and `6GB` are 6,000,000,000 bytes, `6GiB` is 2**30 times 6; a number is one of
    bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 2**63:
        return int(value)
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) and len(value) <= 40 else None
    if match is None or float(match[1]) == 0:
        raise InputError(f"{shown(value)} is not an amount of memory", hint="write 6G, 6.5GB, 512M or 6GiB")
    power = 1 + "KMGT".index(match[2].upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def parse_size(value: object) -> tuple[int, int]:
    """Return `"640x384"` or `(640, 384)` as (width, height). `check_size` tells whether a model can render it."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        width, height = int(match[1]), int(match[2])
    elif isinstance(value, tuple) and [type(side) for side in value] == [int, int]:
        width, height = value
    else:
        raise InputError(f"{shown(value)} is not a size", hint="write WIDTHxHEIGHT in pixels, e.g. 640x384")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError(f"size {width}x{height}: each side must be 1 to {MAX_SIDE} pixels")
    return width, height


def parse_steps(value: object) -> tuple[int, ...]:
    """Return the solver steps of each stage: `"2,2,2"`, `[2, 2, 2]`, `50` or `"50"`."""
    parts = value.split(",") if isinstance(value, str) and len(value) <= 100 else value
    parts = list(parts) if isinstance(parts, list | tuple) else [parts]
    steps: list[Any] = [
        int(part) if isinstance(part, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", part) else part for part in parts
    ]
    if not all(type(step) is int and 1 <= step <= MAX_STEPS for step in steps):
        message = f"steps {shown(value)}: each must be a whole number, 1 to {MAX_STEPS}"
        raise InputError(message, hint="write one number per stage, e.g. 2,2,2, or 50 for Base")
    if not 1 <= len(steps) <= 8:
        raise InputError(f"steps: {len(steps)} numbers given", hint="write one number per stage, e.g. 2,2,2")
    return tuple(steps)


def parse_workers(value: object) -> Workers:
    """Return a number of workers, or "auto" for one per GPU."""
    text = str(value)
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_WORKERS:
        return int(text)
    raise InputError(f"{value!r} is not a number of workers", hint=f"write a number from 1 to {MAX_WORKERS}, or auto")


def parse_forms(value: object) -> tuple[str, ...]:
    """Return the names of timelines: `"otio,edl"`, `("otio", "edl")`."""
    parts = value if isinstance(value, tuple) else str(value).split(",")
    forms = tuple(dict.fromkeys(str(part).strip().lower() for part in parts))
    for form in forms:
        if form not in EXPORT_FORMS:
            raise InputError(f"{value}: unknown timeline format {form!r}", hint="write otio, edl, or otio,edl")
    return forms


def parse_unless_none(value: object) -> str | None:
    """Return a text, and None for `none`, which leaves out what a record has."""
    text = parse_as(str, value)
    return None if text == "none" else text


def parse_as(kind: Any, value: object) -> Any:
    """Return a word, or a value from Python, as the `kind` of a field: a simple type, a path or a choice, or None."""
    options = get_args(kind)
    if NoneType in options:
        return None if value is None else parse_as(options[0], value)
    if get_origin(kind) is Literal:
        if value in options:
            return value
        raise InputError(f"must be one of {', '.join(options)}, not {shown(value)}")
    if kind in (int, float) and not isinstance(value, bool):
        with suppress(TypeError, ValueError, OverflowError):
            number = kind(value)
            if kind is float or isinstance(value, str) or number == value:
                return number
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if kind in (bool, str, Path) and isinstance(text, bool if kind is bool else str):
        return kind(text)
    raise InputError(f"must be {_KINDS[kind]}, not {shown(value)}")


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def check_size(size: tuple[int, int], num_stages: int) -> None:
    """Raise InputError, with the two nearest sizes that work, if a model of `num_stages` stages cannot render `size`.

    Each stage halves the latents, and a patch takes two cells: an odd remainder would only fail after minutes of work.
    """
    multiple = size_multiple(num_stages)
    if all(multiple <= side <= MAX_SIDE and side % multiple == 0 for side in size):
        return
    multiples = [{min(max(multiple * n, multiple), MAX_SIDE) for n in (s // multiple, -(-s // multiple))} for s in size]
    legal = sorted(product(*map(sorted, multiples)), key=lambda s: abs(s[0] - size[0]) + abs(s[1] - size[1]))
    raise InputError(
        f"size {size[0]}x{size[1]}: this model renders multiples of {multiple}, {multiple} to {MAX_SIDE}",
        hint="the nearest sizes that work are " + " and ".join(f"{w}x{h}" for w, h in legal[:2]),
    )


def pick(key: str, options: Any, recipe: Any, default: Any = None, origin: str = "default") -> tuple[Any, str]:
    """Return the value of `key` and its origin: a flag, else the recipe or a shot of it, else the default."""
    given = (("flag", getattr(options, key)), ("recipe", getattr(recipe, key)))
    return next(((value, source) for source, value in given if value is not None), (default, origin))


def _seconds_of(value: object) -> float | None:
    if isinstance(value, time):  # TOML's 00:01:30
        value = value.isoformat()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) <= sys.float_info.max else None  # NaN is not
    if not isinstance(value, str) or len(value) > 40:
        return None
    text = value.strip()
    clock, units = _CLOCK.fullmatch(text), _UNITS.fullmatch(text)
    if clock and (float(clock[3]) >= 60 or (clock[1] and int(clock[2]) >= 60)):
        return None
    parts = clock or units
    if parts is None or not any(parts.groups()):
        return None
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return hours * 3600 + minutes * 60 + seconds


def shown(value: object) -> str:
    """Return `value` as messages quote it."""
    if isinstance(value, str):
        return f'"{printable(value, 40)}"'
    if isinstance(value, bool):
        return str(value).lower()
    is_short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**30)
    return str(value) if is_short else kind_of(value)


def kind_of(value: object) -> str:
    """Return the kind of a value in words."""
    kinds = {bool: "true or false", int: "a number", float: "a number", NoneType: "nothing", str: "text"}
    kinds |= {dict: "a single table", list: "a list", tuple: "a list"}
    other = "a date" if isinstance(value, date | time) else f"a value of type {type(value).__name__}"
    return kinds.get(type(value), other)
