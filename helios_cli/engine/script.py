"""Which chunks a film has: all known before it is rendered, or decided one after the other while it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from helios_cli.engine.events import Event
from helios_cli.recipe.plan import Plan


class Script(Protocol):
    """What the render loop asks for the next chunk.

    Attributes:
        plan: the film with the chunks that are decided so far, at least one; they do not change any more.
        num_frames, num_chunks: of the whole film; None while nobody knows.
    """

    plan: Plan
    num_frames: int | None
    num_chunks: int | None

    def decide(self, index: int) -> Iterable[Event]:
        """Chunk `index` is the next to be rendered: from now on `plan` has it, or the film ends before it.

        Gives what there is to tell of it, and may be asked again. All is decided when the last event is taken.
        """
        ...


@dataclass(frozen=True)
class Planned:
    """The script of a film that is known from its first chunk to its last."""

    plan: Plan

    @property
    def num_frames(self) -> int:
        return self.plan.num_frames

    @property
    def num_chunks(self) -> int:
        return len(self.plan.chunks)

    def decide(self, index: int) -> Iterable[Event]:
        return ()
