"""Scripts: the chunks of a film, all known before it is rendered, or decided one by one while it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from helios_cli.engine.events import Event
from helios_cli.recipe.plan import Plan

if TYPE_CHECKING:
    from helios_cli.recipe.film import Film  # brings pydantic, which a machine that is only measured lacks


class Script(Protocol):
    """Decides the chunks of a film for the render loop.

    Attributes:
        film: the film with its recipe, as far as it is decided; None where only chunks are rendered.
        plan: the chunks that are decided so far, at least one; they do not change any more.
        num_frames, num_chunks: size of the whole film; None while it is not known.
    """

    @property
    def film(self) -> Film | None: ...

    @property
    def plan(self) -> Plan: ...

    @property
    def num_frames(self) -> int | None: ...

    @property
    def num_chunks(self) -> int | None: ...

    def is_early(self, index: int) -> bool:
        """Return whether `decide` would wait before it decides chunk `index`."""
        ...

    def decide(self, index: int) -> Iterable[Event]:
        """Decide chunk `index`, the next to be rendered: `plan` has it when the last event is taken, or the film ends.

        Yields the events of that decision. It may be asked for one chunk several times.
        """
        ...


@dataclass(frozen=True)
class Planned:
    """The script of a film whose chunks are all known."""

    plan: Plan
    film: Film | None = None

    @property
    def num_frames(self) -> int:
        return self.plan.num_frames

    @property
    def num_chunks(self) -> int:
        return len(self.plan.chunks)

    def is_early(self, index: int) -> bool:
        return False

    def decide(self, index: int) -> Iterable[Event]:
        return ()
