"""Rewrites plain text as people and programs write lists into the form that `text.py` reads, with the same lines.

    0:00 A boat. / 0:05 A storm.      points in time, from 0 on: [0:00-] A boat.
    0:00 - 0:05: A boat.              from ... to ...: [0:00-0:05] A boat.
    1. A boat. / 2. A storm.          a shot for each number, or each bullet
    A boat leaves. / A storm rises.   one block of lines that are sentences: a shot for each

A line that begins a shot without a blank line before it gets SHOT in front.
"""

from __future__ import annotations

import re
from contextlib import suppress

from helios_cli.errors import InputError
from helios_cli.recipe.files import is_fence
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.values import parse_time

SHOT = "\f"
"""Begins a line that begins a shot. No source contains one: it is a control character."""

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
    (re.compile(r"\A\s*\"?id\"?\s*[,;\t]\s*\"?prompt(_index)?\b"), "a table", ".csv"),
)


def as_shot_list(text: str, problems: Problems) -> tuple[str, list[str]]:
    """Return `text` in the form of `text.py`, and notices of what was decided. Ambiguous parts go to `problems`."""
    for form, name, suffix in _SYNTAX:
        if match := form.search(text):
            number = text.count("\n", 0, match.end()) + 1
            problems.add(f"is {name}, not plain text", line=number, suggestion=f"name the file {suffix}")
            return "", []
    lines = text.split("\n")
    filled, firsts, is_free = [], [], True  # indices of lines with words, and of those after a blank line
    for index, line in enumerate(lines):
        if not line.lstrip().startswith("#"):  # a comment separates nothing
            if line.strip():
                filled.append(index)
                firsts += [index] * is_free
            is_free = not line.strip()
    for number in filled:
        if is_fence(lines[number]):
            problems.add("this line is a code fence", line=number + 1, suggestion="remove the line")
    notices = _items(lines, filled, firsts) or _sentences(lines, filled, firsts)
    notices += _times(lines, filled, problems)
    return "\n".join(lines), notices


def _items(lines: list[str], filled: list[int], firsts: list[int]) -> list[str]:
    """Make a shot of each item if each block of lines begins with a number that counts, or with a bullet."""
    items = {index: match for index in filled if (match := _ITEM.match(lines[index]))}
    counts = [int(match[1]) for match in items.values() if match[1]]
    does_count = not counts or (counts[0] < 2 and counts == list(range(counts[0], counts[0] + len(items))))
    if len(items) < 2 or not does_count or not items.keys() >= set(firsts):
        return []
    for index, match in items.items():
        lines[index] = SHOT + lines[index][match.end() :]
    return [f"each of the {len(items)} items is a shot"]


def _sentences(lines: list[str], filled: list[int], firsts: list[int]) -> list[str]:
    """Make a shot of each line if there is one block without times, and each line is a sentence."""
    has_times = any(lines[index].lstrip().startswith("[") or _BARE.match(lines[index]) for index in filled)
    if len(filled) < 2 or len(firsts) > 1 or has_times:
        return []
    if not all(_SENTENCE.fullmatch(lines[index]) for index in filled):
        return [f"the {len(filled)} lines are one prompt; for several shots leave a blank line between them"]
    for index in filled:
        lines[index] = SHOT + lines[index]
    return [f"each of the {len(filled)} lines is a shot; for one shot write them as one line"]


def _times(lines: list[str], filled: list[int], problems: Problems) -> list[str]:
    """Put times without brackets into brackets: from ... to ..., or points in time that count from 0."""
    points: list[tuple[int, re.Match, float]] = []
    for index in filled:
        begin = lines[index].startswith(SHOT)
        match = _BARE.match(lines[index], begin)
        if match and match[2]:
            lines[index] = f"{lines[index][:begin]}[{match[1]}-{match[2]}] {lines[index][match.end() :]}"
        elif match:
            with suppress(InputError):  # words that begin with 9:75
                points.append((index, match, parse_time(match[1])))
    marked = [index for index, match, _ in points if match[3].strip()]
    times = [seconds for *_, seconds in points]
    if (marked or len(points) > 1) and times[0] == 0 and times == sorted(set(times)):
        for index, match, seconds in points:
            lines[index] = f"{lines[index][: match.pos]}[{seconds:.3f}s-] {lines[index][match.end() :]}"
        return ["times without brackets are read as the starts of shots"]
    for index in marked:
        suggestion = "write [0:05] for the length of the shot, [0:05-] or [0:05-0:10] for its start and end"
        problems.add("this time has no brackets", line=index + 1, suggestion=suggestion)
    return []
