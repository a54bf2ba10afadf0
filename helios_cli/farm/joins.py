"""Joins films whose chunks are all there, in threads: workers go on with other films."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue
from threading import Thread

from helios_cli.engine.events import Event
from helios_cli.farm.film import FarmFilm

MOST = 4
"""The most films that are joined at a time: their ffmpeg would keep the processor from the driver and its workers."""


class Joins:
    """The films that are being joined."""

    def __init__(self) -> None:
        self._films: set[FarmFilm] = set()
        self._heard: SimpleQueue[tuple[FarmFilm, Event | BaseException | None]] = SimpleQueue()

    def __contains__(self, film: FarmFilm) -> bool:
        return film in self._films

    @property
    def are_full(self) -> bool:
        return len(self._films) >= MOST

    @property
    def are_quiet(self) -> bool:
        """Return whether there is nothing to hear."""
        return self._heard.empty()

    def start(self, film: FarmFilm) -> None:
        self._films.add(film)
        Thread(target=self._join, args=(film,), name="join", daemon=True).start()

    def heard(self) -> Iterator[tuple[FarmFilm, Event | BaseException | None]]:
        """Yield what has happened: events of a film, at last the error that ended its join, or None."""
        while not self._heard.empty():
            film, what = self._heard.get()
            if not isinstance(what, Event):
                self._films.remove(film)
            yield film, what

    def _join(self, film: FarmFilm) -> None:
        try:
            with closing(film.join()) as events:
                for event in events:
                    self._heard.put((film, event))
        except BaseException as error:
            self._heard.put((film, error))
        else:
            self._heard.put((film, None))
