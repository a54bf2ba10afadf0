"""The end of a render: filters, program and sound (`film.after`), with the events that tell how far they are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing

from helios_cli.engine.events import Event, FramesDone, PhaseStarted
from helios_cli.film.encoding import PieceWriter


def completed(writer: PieceWriter) -> Generator[Event, None, None]:
    """Do what comes after the render of the film in `writer`, and yield how far it is."""
    yield PhaseStarted("after")
    with closing(writer.complete()) as counts:
        for count in counts:
            yield FramesDone(count, writer.num_final_frames)
