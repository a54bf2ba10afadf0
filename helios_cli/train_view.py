"""Views of a training run: each consumes its events (`train/events.py`) and shows its progress.

A view shows an event of an unknown kind by its `text`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from helios_cli.console import console
from helios_cli.progress import LiveLines, bar_line
from helios_cli.train.events import Event, FillDone, Filled, FillStarted, Notice, RunDone, RunStarted, Trained
from helios_cli.units import format_duration
from helios_cli.visible import visible

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType


class PlainView:
    """Prints lines to stderr, for logs."""

    def show(self, event: Event) -> None:
        if isinstance(event, Notice):
            console.notice(event.message)
        else:
            console.status(event.text)


class Pace:
    """Estimates when a run will be over. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None
        self.fraction = 0.0

    def follow(self, fraction: float) -> None:
        self._first = self._first or (self._clock(), fraction)
        self.fraction = fraction

    @property
    def left_text(self) -> str:
        if self._first is None or self.fraction <= self._first[1]:
            return "-:-- left"
        since, begun = self._first
        seconds = (self._clock() - since) * (1 - self.fraction) / (self.fraction - begun)
        return f"{format_duration(seconds)} left"


class RichView(LiveLines, PlainView):
    """Draws a bar, and a line for each player's latest losses or for the state of a folder; they vanish at the end."""

    def __init__(self, terminal: RichConsole) -> None:
        super().__init__(terminal, self.draw, per_second=4)
        self._pace = Pace()
        self._is_under_way = False
        self._latest: dict[str, Event] = {}

    def show(self, event: Event) -> None:
        if isinstance(event, Trained):
            self._pace.follow(event.fraction)
            self._latest = {**self._latest, event.player: event}  # replaced: the live view reads it from its thread
            return
        if isinstance(event, Filled):
            self._pace.follow(event.done / event.total)
            self._latest = {"": event}
            return
        if isinstance(event, RunStarted | FillStarted):
            self._is_under_way, self._pace, self._latest = True, Pace(), {}
        elif isinstance(event, RunDone | FillDone):
            self._is_under_way = False
        super().show(event)

    def draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        if not self._is_under_way:
            return Text("")
        bar = bar_line(self._terminal.width, self._pace.fraction, self._pace.left_text, decimals=1)
        lines = [Text(visible(event.text), no_wrap=True, overflow="ellipsis") for event in self._latest.values()]
        return Group(bar, *lines)
