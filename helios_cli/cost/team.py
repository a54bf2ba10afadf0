"""The division of a film's model calls among the ranks of `--gpus-per-film`, without torch; `engine.teams` does it."""

from __future__ import annotations

from dataclasses import dataclass

from helios_cli.errors import InputError

MAX_RANKS = 64


@dataclass(frozen=True)
class Team:
    """The ranks that make one model call together: all of them, or half of them where both branches of guidance are
    made at the same time."""

    size: int
    notice: str | None = None
    """The notice of a film whose branches of guidance are made one after the other."""

    @classmethod
    def of(cls, ranks: int, guidance: float, heads: int) -> Team:
        """Return the team of a film on `ranks`. Raises InputError unless they can share the heads of attention."""
        guided = guidance > 1
        choices = _choices(guided, heads)
        if ranks not in choices:
            film = "with guidance, whose branches take half of them each" if guided else "without guidance"
            raise InputError(
                f"--gpus-per-film {ranks}: {heads} heads of attention do not divide among so many {film}",
                hint=f"use {_listed(choices[1:])}" if choices[1:] else "leave it out",
            )
        if not guided or ranks == 1:
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


def _choices(guided: bool, heads: int) -> list[int]:
    """Return the numbers of ranks that are possible."""
    found = {count for count in range(1, MAX_RANKS + 1) if heads % count == 0}
    if guided:
        found |= {2 * count for count in range(1, MAX_RANKS // 2 + 1) if heads % count == 0}
    return sorted(found)


def _listed(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last
