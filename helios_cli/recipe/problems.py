"""What is wrong with a source, each problem with its place, gathered so that a file is corrected in one go."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from helios_cli.errors import InputError
from helios_cli.visible import printable

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
        if len(self.problems) == 1:
            super().__init__(str(self.problems[0]), hint=self.problems[0].suggestion)
            return
        lines = [f"{p}; {p.suggestion}" if p.suggestion else str(p) for p in self.problems[:MAX_LISTED]]
        if len(self.problems) > MAX_LISTED:
            lines.append(f"and {len(self.problems) - MAX_LISTED} more")
        super().__init__("\n  ".join([f"{len(self.problems)} problems", *lines]))


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
