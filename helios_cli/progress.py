"""Displays of a running render; each consumes the engine's events (`engine/events.py`).

A `Track` turns the events of one film into numbers; a view decides how they look. Those of films that several workers
render are in `farm_view.py`.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar, cast

from helios_cli.console import console
from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    FramesDone,
    Notice,
    PhaseStarted,
    Playback,
    PreviewDone,
    PromptTaken,
)
from helios_cli.errors import Interrupted
from helios_cli.track import PHASES, Track, speed_text, took_text
from helios_cli.units import counted, format_bytes, format_duration
from helios_cli.visible import printable

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
    from rich.live import Live


T = TypeVar("T")

ProgressKind = Literal["auto", "rich", "plain", "json", "none"]

TENTHS = 10
"""Lines about the frames that a program or filters make."""

BAR_LINE_WIDTH = 100
"""Maximum width of the bar's line: on a wide terminal a longer bar would push the numbers out of sight."""


NO_BREAKS, BREAKS = "\x1b[?7l", "\x1b[?7h"
"""DECAWM: whether a terminal continues a line that is too long on the next row."""


class View(Protocol):
    def show(self, event: Event) -> None: ...

    def of(self, film: str) -> View:
        """Return a display of one film among several that render at a time."""
        ...


@contextmanager
def open_view(
    kind: ProgressKind, plain: Callable[[], Any] | None = None, rich: Callable[[RichConsole], Any] | None = None
) -> Iterator[Any]:
    """Open the display called `kind`. `auto` is `rich`, and `rich` without a terminal is `plain`.

    Training passes its own `plain` and `rich` displays.
    """
    if kind == "json":
        yield JsonView()
    elif kind == "none":
        yield SilentView()
    elif kind == "plain" or (terminal := console.live()) is None:
        yield (plain or PlainView)()
    else:
        with (rich or RichView)(terminal) as view:
            yield view


class Stoppable(Protocol):
    """Renders films, and knows what of them is safe when it is stopped: a session, or the driver of a farm."""

    def stopped(self) -> Interrupted: ...


def show_all(events: Generator[T, None, None], show: Callable[[T], None], session: Stoppable) -> None:
    """Show each event of a render. Ctrl-C, wherever it strikes, becomes Interrupted, which says what is safe."""
    try:
        try:
            for event in events:
                show(event)
        except KeyboardInterrupt as stop:
            events.throw(stop)
    except KeyboardInterrupt:
        raise session.stopped() from None


class SilentView:
    def show(self, event: Event) -> None:
        """Show nothing."""

    def of(self, film: str) -> SilentView:
        return self


class JsonView:
    """Prints events to stdout as NDJSON. With several films each event names its `film`."""

    def __init__(self, film: str | None = None) -> None:
        self.film = film

    def show(self, event: Event) -> None:
        console.record(event.to_dict() | ({} if self.film is None else {"film": self.film}))

    def of(self, film: str) -> JsonView:
        return JsonView(film)


class FilmView(ABC):
    """Follows one film, and prints the lines about it that every display has. `before` is printed before each."""

    def __init__(self, before: str = "") -> None:
        self.before = before
        self.track = Track()

    def of(self, film: str) -> PlainView:
        return PlainView(f"{film}: ")

    def show(self, event: Event) -> None:
        self.track.follow(event)
        if isinstance(event, FilmStarted):
            self.track = Track(event)
            self.say(*start_lines(event, named=not self.before))
        elif isinstance(event, Notice):
            console.notice(self.before + event.message)
        elif isinstance(event, PromptTaken):
            self.say(taken_line(event))
        elif isinstance(event, PreviewDone):
            self.say(preview_line(event, self.track.known))
        elif isinstance(event, FilmDone) and self.track.has_begun(event):
            track, self.track = self.track, Track()
            self.end()
            self.say(*summary_lines(event, track.known, track.behind))

    @abstractmethod
    def end(self) -> None:
        """Forget the film, of which only the summary is to come."""

    def say(self, *lines: str) -> None:
        for line in lines:
            console.status(self.before + line)


class PlainView(FilmView):
    """Prints lines to stderr, for logs: the film, each phase once, each chunk, and a summary."""

    def __init__(self, before: str = "") -> None:
        super().__init__(before)
        self.phases: set[str] = set()
        self.reused = self.tenths = 0

    def show(self, event: Event) -> None:
        if isinstance(event, ChunksReused):
            self.reused += event.count
        elif self.reused and not isinstance(event, Playback):  # they come one at a time, hundreds in a long film
            self.say(f"{counted(self.reused, 'chunk')} from earlier renders, {self.track.film_text}")
            self.reused = 0
        super().show(event)
        if isinstance(event, Playback):
            if event.state == "paused":
                self.say("paused; [play] goes on")
        elif isinstance(event, PhaseStarted) and event.phase not in self.phases:
            self.phases.add(event.phase)
            self.say(PHASES[event.phase])
        elif isinstance(event, ChunkDone):
            track = self.track
            parts = (track.frames_text, track.film_text, track.speed_text, track.left_text, track.live_text)
            done = f"{track.chunk_text(event.chunk + 1)} in {took_text(event.seconds)}"
            self.say(f"{done}: {', '.join(filter(None, parts))}")
        elif isinstance(event, FramesDone) and TENTHS * event.frames // event.all_frames > self.tenths:
            self.tenths = TENTHS * event.frames // event.all_frames
            self.say(f"{PHASES['after']}: {event.frames} of {counted(event.all_frames, 'frame')}")

    def end(self) -> None:
        self.phases.clear()
        self.tenths = 0


class LiveLines:
    """Redraws lines below what is printed on the terminal, until the block ends; then they vanish.

    A terminal that becomes narrower breaks lines that are longer than it: they take more rows than Rich clears. Until
    the new width is known here, which takes tmux up to a quarter of a second, lines that are too long are cut by the
    terminal.
    """

    def __init__(self, terminal: RichConsole, draw: Callable[[], RenderableType], per_second: float = 8) -> None:
        self._terminal = terminal
        self._draw = draw
        self._pause = 1 / per_second
        self._live: Live | None = None
        self._drawn: tuple[int, ...] = ()  # the widths of the lines that are on the terminal

    def __enter__(self) -> Self:
        self._start()
        console.lines = self
        return self

    def __exit__(self, *_: object) -> None:
        console.lines = None
        self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._stop()
        try:
            yield
        finally:
            self._start()

    def refresh(self) -> None:
        """Draw the lines at once."""
        with console.turn:
            if self._live is not None:
                self._live.refresh()

    def _start(self) -> None:
        from rich.live import Live

        with console.turn:
            # Rich draws while another thread prints: where the number of lines changes just then, lines get lost.
            live = Live(get_renderable=lambda: self, console=self._terminal, transient=True, auto_refresh=False)
            live.start()
            self._terminal.push_render_hook(cast("RenderHook", self))
            self._live, self._drawn = live, ()
        threading.Thread(target=self._redraw, args=(live,), name="lines", daemon=True).start()

    def _stop(self) -> None:
        with console.turn:
            live, self._live = self._live, None
            if live is not None:
                live.refresh()
                self._terminal.pop_render_hook()
                live.stop()

    def _redraw(self, live: Live) -> None:
        while self._live is live:
            self.refresh()
            time.sleep(self._pause)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Clear the rows that broken lines take in addition, before Rich clears a row for each line."""
        from rich.control import Control
        from rich.segment import ControlType

        rows = sum(max(0, -(-width // self._terminal.width) - 1) for width in self._drawn)
        clear = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        return [Control(ControlType.CARRIAGE_RETURN, *(clear * rows)), *renderables] if rows else renderables

    def __rich_console__(self, terminal: RichConsole, options: ConsoleOptions) -> RenderResult:
        from rich.segment import ControlType, Segment

        lines = terminal.render_lines(self._draw(), options, pad=False)
        self._drawn = tuple(Segment.get_line_length(line) for line in lines)
        as_control = [(ControlType.SHOW_CURSOR,)]  # any: it says that the text takes no room
        yield Segment(NO_BREAKS, None, as_control)
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield from line
        yield Segment(BREAKS, None, as_control)


class RichView(FilmView, LiveLines):
    """Redraws two lines on the terminal: a bar, and the place in the chunk."""

    def __init__(self, terminal: RichConsole) -> None:
        from rich.spinner import Spinner

        FilmView.__init__(self)
        LiveLines.__init__(self, terminal, self.draw)
        self.terminal = terminal
        self.spinner = Spinner("dots" if terminal.encoding.startswith("utf") else "line")

    def end(self) -> None:
        self.refresh()  # else the bar is drawn once more, below the summary

    def draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        track = self.track
        phase = track.place.phase
        if phase is None:
            return Text("")
        if phase == "after" and track.behind is not None:
            done, in_all = track.behind.frames, track.behind.all_frames
            return Group(
                bar_line(self.terminal.width, done / in_all, f"{done}/{in_all} frames", ""), Text(PHASES["after"])
            )
        if phase not in ("denoise", "decode"):
            self.spinner.update(text=f"{PHASES[phase]}  {format_duration(track.clock() - track.place.since)}")
            return self.spinner
        line = bar_line(self.terminal.width, track.fraction, track.frames_text, track.left_text)
        texts = (track.place_text, track.film_text, track.speed_text, track.live_text)
        place = "  ".join(filter(None, texts))
        return Group(line, Text(place, no_wrap=True, overflow="ellipsis"))


def bar_line(width: int, fraction: float | None, *texts: str, decimals: int = 0) -> RenderableType:
    """Return a bar with percent and texts, such as frames and time left; for an unknown `fraction` one that pulses."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.width = min(BAR_LINE_WIDTH, width)
    line.add_column(ratio=1)
    for _ in range(1 + len(texts)):
        line.add_column(no_wrap=True)
    percent = "" if fraction is None else f"{int(100 * fraction)} %" if not decimals else f"{fraction:.{decimals}%}"
    bar = ProgressBar(total=1.0, completed=fraction or 0.0, pulse=fraction is None, complete_style="cyan")
    line.add_row(bar, percent, *texts)
    return line


def start_lines(film: FilmStarted, *, named: bool = True) -> list[str]:
    """Return lines about the film that begins; `named` if nothing else names it."""
    size = f"{film.width}x{film.height}"
    if film.frames is None or film.chunks is None:
        what = f"{size} at {film.fps:g} fps, as long as prompts come"
    else:
        length = f"{counted(film.frames, 'frame')}, {film.frames / film.fps:.1f} s at {film.fps:g} fps"
        what = f"{length}, {size}, {counted(film.chunks, 'chunk')}"
    lines = [
        f"{film.film}: " * named + what,
        f"model {film.model} on {film.device} in {film.dtype}, to {film.output}",
    ]
    return [*lines, f"a preview: decoded by {printable(film.preview)}, not by the VAE"] if film.preview else lines


def taken_line(taken: PromptTaken) -> str:
    """Return a line about a prompt that takes effect."""
    when = "" if taken.delay is None else f", {taken.delay:.1f} s after it came"
    return f"from chunk {taken.chunk + 1} on{when}, {taken.transition}: {taken.prompt}"


def preview_line(done: PreviewDone, film: FilmStarted) -> str:
    """Return a line about a finished preview."""
    length = f"{counted(done.frames, 'frame')}, {done.frames / film.fps:.1f} s"
    return f"previewed {done.output}: {length} in {format_duration(done.seconds)}; the VAE decodes it now"


def summary_lines(done: FilmDone, film: FilmStarted, behind: FramesDone | None = None) -> list[str]:
    """Return lines about a finished film: frames, speed, memory, and seconds by phase.

    `behind` says how many frames a program or filters made of those that were rendered."""
    memory = f"peak memory {format_bytes(done.peak_host_bytes)}"
    if done.peak_device_bytes is not None:
        memory += f" and {format_bytes(done.peak_device_bytes)} on the device"
    if done.peak_vae_device_bytes is not None:
        memory += f", {format_bytes(done.peak_vae_device_bytes)} on that of the VAE"
    speed = speed_text(done.frames_per_second)
    if done.frames_reused == done.frames:
        speed = "every frame from earlier renders"
    elif done.frames_reused:
        speed += f", {counted(done.frames_reused, 'frame')} from earlier renders"
    final = done.frames if behind is None else behind.all_frames
    lines = [
        f"wrote {done.output}: {counted(final, 'frame')}, {done.frames / film.fps:.1f} s",
        f"  in {format_duration(done.seconds)}, {speed}, {memory}",
    ]
    if done.phases:
        lines.append("  " + ", ".join(f"{phase} {took_text(seconds)}" for phase, seconds in done.phases.items()))
    return lines
