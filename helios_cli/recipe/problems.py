"""What is wrong with a source, each problem with its place, gathered so that a file is corrected in one go."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from helios_cli.errors import InputError
from helios_cli.visible import printable

MAX_FOUND = 1000
"""Problems after which a file is read no further."""

MAX_LISTED = 50
"""Problems spelt out in one message; a hostile file can hold thousands."""


@dataclass(frozen=True)
class Problem:
    """One thing to correct. `line` and `shot` count from 1, as people do; `suggestion` says what to write instead."""

    file: str
    message: str
    line: int | None = None
    shot: int | None = None
    key: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        parts = [f"shot {self.shot}"] if self.shot is not None else []
        parts += [f"`{printable(self.key)}`"] if self.key is not None else []
        return ": ".join([place, *([", ".join(parts)] if parts else []), self.message])

    def to_dict(self) -> dict:
        return asdict(self)


class RecipeError(InputError):
    """All problems of one or several sources; `problems` keeps them apart for `--json`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        told = _by_cause(self.problems)
        lines = [f"{text}; {hint}" if hint else text for text, hint in told[:MAX_LISTED]]
        if len(told) == 1:
            super().__init__(told[0][0], hint=told[0][1])
            return
        if len(told) > MAX_LISTED:
            lines.append(f"and {len(told) - MAX_LISTED} more")
        super().__init__("\n  ".join([f"{len(told)} problems", *lines]))


def _by_cause(problems: Sequence[Problem]) -> list[tuple[str, str | None]]:
    """Text and suggestion of each problem. What is wrong in the same way in many lines of a file is said once."""
    places: dict[tuple, list[Problem]] = {}
    for problem in problems:
        cause = (problem.file, problem.key, problem.message, problem.suggestion)
        places.setdefault(cause if problem.line else (*cause, problem.shot), []).append(problem)
    return [(str(same[0]) + also_in([p.line for p in same]), same[0].suggestion) for same in places.values()]


def also_in(lines: Sequence[int | None]) -> str:
    """` (also in lines 3, 4, …)` for all but the first of some lines."""
    others = [str(line) for line in dict.fromkeys(lines[1:]) if line is not None]
    if not others:
        return ""
    return f" (also in line{'s' if len(others) > 1 else ''} {', '.join(others[:5])}{', …' if len(others) > 5 else ''})"


class Problems:
    """Collects the problems of one file; `stop` raises them, if there are any."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Problem] = []

    def add(
        self,
        message: str,
        *,
        line: int | None = None,
        shot: int | None = None,
        key: str | None = None,
        suggestion: str | None = None,
    ) -> None:
        self.found.append(Problem(self.file, message, line, shot, key, suggestion))
        if len(self.found) >= MAX_FOUND:
            self.stop()

    def stop(self) -> None:
        if self.found:
            raise RecipeError(self.found)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be."""
    if len(word) > 200:  # difflib takes quadratic time, and nobody mistypes this much
        return None
    lowered = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[found[0]] if found else None
