"""A worker as the driver knows it, and the segment that it renders."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from helios_cli.engine.events import Event
from helios_cli.engine.events import Worker as WorkerName
from helios_cli.errors import HeliosError
from helios_cli.farm.film import FarmFilm, Kind
from helios_cli.recipe.plan import Segment


@dataclass
class Assignment:
    """A segment that a worker renders."""

    film: FarmFilm
    segment: Segment
    began: float


@dataclass(eq=False)
class WorkerState:
    """A worker as the driver knows it.

    Attributes:
        kinds: what it computes by, for a model and a size; the error where it cannot.
        asked: the model and the size of the last question to it.
        busy: a segment, or True while it identifies itself or starts; None when it waits for work.
        heard: time of its last message.
        losses: how often it ended since it last finished something.
        retired: why it gets no more work, or None.
    """

    name: str
    heard: float = field(default_factory=time.monotonic)
    host: str = ""
    pid: int | None = None
    device: str = ""
    model: str = ""
    kinds: dict[tuple, Kind | HeliosError] = field(default_factory=dict)
    asked: tuple = ()
    busy: Assignment | bool | None = True
    losses: int = 0
    retired: HeliosError | None = None

    @property
    def task(self) -> Assignment | None:
        return self.busy if isinstance(self.busy, Assignment) else None

    @property
    def is_idle(self) -> bool:
        return self.busy is None and self.retired is None

    def begin(self, work: Assignment | bool) -> None:
        self.busy, self.heard = work, time.monotonic()

    def said(self, event: Event) -> Event:
        """Return an event with the name of the worker."""
        return replace(event, worker=WorkerName(self.name, self.host, self.device), pid=self.pid)
