"""Problems of a source, each with its place, collected so that a file is corrected in one go."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from helios_cli.errors import InputError
from helios_cli.visible import printable

MAX_PROBLEMS = 1000
"""Problems after which a file is read no further."""

MAX_LISTED = 50
"""Problems listed in one message; a hostile file can hold thousands."""

Place = tuple[str | int, ...]
"""The path of a value in a recipe: `("shot", 2, "seconds")`; indices count from 0."""

Lines = Mapping[Place, int]
"""The line, from 1, of each place that has one."""


def line_of(lines: Lines, place: Place) -> int | None:
    """Return the line of `place`, or of the innermost table or list around it that has one."""
    return next((lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in lines), None)


def where(lines: Lines, place: Place) -> dict[str, Any]:
    """Return `line`, `shot` and `key` of a problem with the value at `place`."""
    shot, names = (int(place[1]) + 1, place[2:]) if place[:1] == ("shot",) and len(place) > 1 else (None, place)
    return {"line": line_of(lines, place), "shot": shot, "key": str(names[0]) if names else None}


@dataclass(frozen=True)
class Problem:
    """One thing to correct. `line` and `shot` count from 1; `suggestion` tells what to write instead."""

    file: str
    message: str
    line: int | None = None
    shot: int | None = None
    key: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        shot = [] if self.shot is None else [f"shot {self.shot}"]
        key = [] if self.key is None else [f"`{printable(self.key)}`"]
        return ": ".join([place, *([", ".join(shot + key)] if shot or key else []), self.message])


class RecipeError(InputError):
    """All problems of one or several sources; `problems` keeps them apart for `--json`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        texts = _by_cause(self.problems)
        if len(texts) == 1:
            super().__init__(texts[0][0], hint=texts[0][1])
            return
        lines = [f"{text}; {hint}" if hint else text for text, hint in texts[:MAX_LISTED]]
        if len(texts) > MAX_LISTED:
            lines.append(f"and {len(texts) - MAX_LISTED} more")
        super().__init__("\n  ".join([f"{len(texts)} problems", *lines]))


def _by_cause(problems: Sequence[Problem]) -> list[tuple[str, str | None]]:
    """Return text and suggestion of each problem; one that many lines of a file share is reported once."""
    causes: dict[tuple, list[Problem]] = {}
    for problem in problems:
        cause = (problem.file, problem.key, problem.message, problem.suggestion)
        causes.setdefault(cause if problem.line else (*cause, problem.shot), []).append(problem)
    return [(str(same[0]) + also_in([p.line for p in same]), same[0].suggestion) for same in causes.values()]


def also_in(lines: Sequence[int | None]) -> str:
    """Return ` (also in lines 3, 4, …)` for all lines after the first."""
    more = [str(line) for line in dict.fromkeys(lines[1:]) if line is not None]
    if not more:
        return ""
    return f" (also in line{'s' if len(more) > 1 else ''} {', '.join(more[:5])}{', …' if len(more) > 5 else ''})"


class Problems:
    """Collects the problems of one file; `stop` raises them, if there are any."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.all: list[Problem] = []

    def add(self, message: str, **place: Any) -> None:
        """Add a problem; `place` is `line`, `shot`, `key` and `suggestion`, as far as they are known."""
        self.all.append(Problem(self.file, message, **place))
        if len(self.all) >= MAX_PROBLEMS:
            self.stop()

    def refuse(self, message: str, **place: Any) -> NoReturn:
        """Add a problem and raise all there are."""
        self.all.append(Problem(self.file, message, **place))
        raise RecipeError(self.all)

    def stop(self) -> None:
        if self.all:
            raise RecipeError(self.all)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that `word` was most likely meant to be."""
    if len(word) > 200:  # difflib takes quadratic time, and nobody mistypes this much
        return None
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[close[0]] if close else None
