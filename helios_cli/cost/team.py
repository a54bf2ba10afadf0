"""The division of a film's model calls among the ranks of `--gpus-per-film`, without torch; `engine.teams` does it."""

from __future__ import annotations

from dataclasses import dataclass

from helios_cli.errors import InputError
from helios_cli.units import PIXELS_PER_CELL


@dataclass(frozen=True)
class Team:
    """The ranks that make one model call together: all of them, or half of them where both branches of guidance are
    made at the same time."""

    size: int
    notice: str | None = None
    """The notice of a film whose branches of guidance are made one after the other."""
    ranks: int = 1
    """The ranks of the film, in one team or two."""

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
            return cls(ranks, ranks=ranks)
        if ranks % 2 == 0:
            return cls(ranks // 2, ranks=ranks)
        even = [count for count in choices if count % 2 == 0]
        nearest = [count for count in even if count < ranks][-1:] + [count for count in even if count > ranks][:1]
        return cls(
            ranks,
            f"--gpus-per-film {ranks} is odd, so that all ranks make the two branches of guidance one after the other; "
            f"{_listed(nearest)} ranks would make both at the same time",
            ranks,
        )

    def decoders(self, size: tuple[int, int], *, is_apart: bool) -> int:
        """Return how many ranks decode a chunk together, of films of `size` (width, height).

        They do where all of them make every call together, since their frames are rounded differently anyway. Rank 0
        decodes alone, while the next chunk is denoised, where that takes much longer (guidance), or where the VAE
        `is_apart`, on a device of its own.
        """
        is_shared = self.size == self.ranks <= size[1] // PIXELS_PER_CELL and not is_apart
        return self.ranks if is_shared else 1


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
