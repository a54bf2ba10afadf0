"""Plain text as people and programs write lists, put into the form that `text.py` reads, with the same lines.

    0:00 A boat. / 0:05 A storm.      points in time, from 0 on: [0:00-] A boat.
    0:00 - 0:05: A boat.              from ... to ...: [0:00-0:05] A boat.
    1. A boat. / 2. A storm.          a shot for each number, or each bullet
    A boat leaves. / A storm rises.   one block of lines that are sentences: a shot for each

A line that begins a shot without a blank line before it gets SHOT in front.
"""

from __future__ import annotations

import contextlib
import re

from helios_cli.errors import InputError
from helios_cli.recipe.files import is_fence
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.values import parse_time

SHOT = "\f"
"""Begins a line that begins a shot. No source holds one: it is a control character."""

_TIME = r"(?:[0-9]+:){1,2}[0-9]{2}(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?\s?[hms]\b"
_TO = r"\s*(?:[-–—−~]|-->|to)\s*"
_BARE = re.compile(rf"\s*\(?({_TIME})(?:{_TO}({_TIME}))?(\)?\s*[:|–—-](?=\s)|\)|(?=\s))\s*(?=\S)")
_ITEM = re.compile(r"\s*(?:([0-9]{1,4})[.)]|[-*•–])\s+(?=\S)")
_SENTENCE = re.compile(r".*[.!?…。！？][\"'”’»)\]]*\s*")
_SYNTAX = (
    (re.compile(r"^[ \t]*\[\[[ \t]*shot[ \t]*\]\]", re.MULTILINE), "a recipe in TOML", ".toml"),
    (re.compile(r"^shot:[ \t]*$", re.MULTILINE), "a recipe in YAML", ".yaml"),
    (re.compile(r"\A\s*[{\[]\s*[{\"]"), "JSON", ".json, or .jsonl"),
    (re.compile(r"^[0-9:]+[,.][0-9]+\s*-->", re.MULTILINE), "a list of subtitles", ".srt"),
    (re.compile(r"\A\s*\"?id\"?\s*[,;\t]\s*\"?prompt_index\b"), "a table", ".csv"),
)


def as_shot_list(text: str, problems: Problems) -> tuple[str, list[str]]:
    """`text` in the form that is read, and what was decided about it. What has several meanings goes to `problems`."""
    for form, name, suffix in _SYNTAX:
        if found := form.search(text):
            line = text.count("\n", 0, found.end()) + 1
            problems.add(f"is {name}, not plain text", line=line, suggestion=f"name the file {suffix}")
            return "", []
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    for number in filled:
        if is_fence(lines[number]):
            problems.add("a code fence", line=number + 1, suggestion="remove the line")
    firsts = [number for number in filled if number == 0 or _is_free(lines, number)]
    notices = _items(lines, filled, firsts) or _sentences(lines, filled, firsts)
    notices += _times(lines, filled, problems)
    return "\n".join(lines), notices


def _is_free(lines: list[str], number: int) -> bool:
    """Whether a blank line stands before this one, or only comments."""
    while number > 0 and lines[number - 1].lstrip().startswith("#"):
        number -= 1
    return number == 0 or not lines[number - 1].strip()


def _items(lines: list[str], filled: list[int], firsts: list[int]) -> list[str]:
    """Numbers that count, or bullets, before each block of lines: a shot for each of them."""
    items = {number: match for number in filled if (match := _ITEM.match(lines[number]))}
    counts = [int(match[1]) for match in items.values() if match[1]]
    does_count = not counts or (counts[0] < 2 and counts == list(range(counts[0], counts[0] + len(items))))
    if len(items) < 2 or not does_count or not items.keys() >= set(firsts):
        return []
    for number, match in items.items():
        lines[number] = SHOT + lines[number][match.end() :]
    return [f"each of the {len(items)} items is a shot"]


def _sentences(lines: list[str], filled: list[int], firsts: list[int]) -> list[str]:
    """One block of lines without times is a shot for each line where each is a sentence, else one prompt."""
    has_times = any(lines[number].lstrip().startswith("[") or _BARE.match(lines[number]) for number in filled)
    if len(filled) < 2 or len(firsts) > 1 or has_times:
        return []
    if not all(_SENTENCE.fullmatch(lines[number]) for number in filled):
        return [f"the {len(filled)} lines are one prompt; for several shots leave a blank line between them"]
    for number in filled:
        lines[number] = SHOT + lines[number]
    return [f"each of the {len(filled)} lines is a shot; for one shot write them as one line"]


def _times(lines: list[str], filled: list[int], problems: Problems) -> list[str]:
    """Put times without brackets into some: from ... to ..., or points in time that count from 0."""
    points: list[tuple[int, re.Match, float]] = []
    for number in filled:
        begin = lines[number].startswith(SHOT)
        found = _BARE.match(lines[number], begin)
        if found and found[2]:
            lines[number] = f"{lines[number][:begin]}[{found[1]}-{found[2]}] {lines[number][found.end() :]}"
        elif found:
            with contextlib.suppress(InputError):  # words that begin with 9:75
                points.append((number, found, parse_time(found[1])))
    marked = [number for number, found, _ in points if found[3].strip()]
    times = [seconds for *_, seconds in points]
    if (marked or len(points) > 1) and times[0] == 0 and times == sorted(set(times)):
        for number, found, seconds in points:
            lines[number] = f"{lines[number][: found.pos]}[{seconds:.3f}s-] {lines[number][found.end() :]}"
        return ["the times without brackets are where shots begin"]
    for number in marked:
        suggestion = "write [0:05] for how long the shot is, [0:05-] or [0:05-0:10] for where it begins and ends"
        problems.add("a time stands without brackets", line=number + 1, suggestion=suggestion)
    return []
