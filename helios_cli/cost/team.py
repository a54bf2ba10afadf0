"""The division of a film's model calls among the ranks of `--gpus-per-film`, without torch; `engine.teams` does it."""

from __future__ import annotations

from dataclasses import dataclass

from helios_cli.errors import InputError


@dataclass(frozen=True)
class Team:
    """The ranks that make one model call together: all of them, or half of them where both branches of guidance are
    made at the same time."""

    size: int
    notice: str | None = None
    """The notice of a film whose branches of guidance are made one after the other."""

    @classmethod
    def of(cls, ranks: int, guidance: float, heads: int, model: str) -> Team:
        """Return the team of a film on `ranks`. Raises InputError unless they can share the heads of attention."""
        guided = guidance > 1
        choices = divisions(heads, guided=guided)
        if ranks == 1:
            return cls(1)
        if ranks not in choices:
            raise InputError(
                f"--gpus-per-film {ranks}: the {heads} attention heads of {model} cannot be divided so",
                hint=f"use {_listed(choices[:8])}" if choices else "leave it out",
            )
        if not guided:
            return cls(ranks)
        if ranks % 2 == 0:
            return cls(ranks // 2)
        even = [count for count in choices if count % 2 == 0]
        nearest = [count for count in even if count < ranks][-1:] + [count for count in even if count > ranks][:1]
        return cls(
            ranks,
            f"--gpus-per-film {ranks} is odd, so that all ranks make the two branches of guidance one after the other; "
            f"{_listed(nearest)} ranks would make both at the same time",
        )


def divisions(heads: int, *, guided: bool) -> list[int]:
    """Return the numbers of ranks, from 2 on, that can make the calls of a model with so many attention heads.

    With guidance an even number makes two teams, each of which shares the heads.
    """
    return [
        ranks for ranks in range(2, 2 * heads + 1) if heads % (ranks // 2 if guided and ranks % 2 == 0 else ranks) == 0
    ]


def _listed(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
