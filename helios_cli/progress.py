"""Displays of a running render; each consumes the engine's events (`engine/events.py`).

A `Track` turns the events of one film into numbers; a view decides how they look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from helios_cli.console import console
from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    Notice,
    PhaseStarted,
    PromptTaken,
    StepDone,
)
from helios_cli.errors import HeliosError, Interrupted
from helios_cli.units import counted, format_bytes

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType

    from helios_cli.engine.session import Session
    from helios_cli.film.jobs import Job

T = TypeVar("T")

ProgressKind = Literal["auto", "rich", "plain", "json", "none"]

PHASES = {
    "load": "loading the model",
    "text": "reading the prompts",
    "conditioning": "encoding the start",
    "denoise": "denoising",
    "decode": "decoding",
    "finish": "finishing the file",
}

RECENT_CHUNKS = 8
"""Chunks whose mean time predicts the rest: enough to smooth out a hiccup, few enough to follow a lasting change."""

BAR_LINE_WIDTH = 100
"""Maximum width of the bar's line: on a wide terminal a longer bar would push the numbers out of sight."""


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


class Track:
    """The progress of one film. `clock` returns seconds, to time the chunk in flight.

    Phases may begin before the film is known; only `phase` and `phase_started` are meaningful then. While a chunk is
    denoised the previous one may still be decoded: `chunk` is the last one that was begun, from 0.
    """

    def __init__(self, film: FilmStarted | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.film = film
        self.clock = clock
        self.phase_started = self.chunk_started = clock()
        self.phase = "denoise" if film else None
        self.step: StepDone | None = None
        self.frames_done = self.chunk = 0
        self.steps_in_chunk = 0
        self.steps_per_chunk = max(1.0, film.steps / film.chunks) if film and film.steps and film.chunks else 1.0
        # (frames, seconds) of each chunk. Replaced, never mutated: the live display reads it from its own thread.
        self.recent: tuple[tuple[int, float], ...] = ()
        self.warm = False

    def has_begun(self, done: FilmDone) -> bool:
        """Return whether this film is the one that is done; a film that was finished before never begins."""
        return self.film is not None and self.film.output == done.output

    def follow(self, event: Event) -> None:
        if isinstance(event, PhaseStarted):
            if event.phase != "denoise":
                self.phase_started = self.clock()
            else:
                self._begin(self.chunk if self.step is None else self.step.chunk + 1)
            self.phase = event.phase
        elif isinstance(event, StepDone):
            self.phase, self.step = "denoise", event
            self.steps_in_chunk += 1
        elif isinstance(event, ChunksReused):
            self.frames_done, self.chunk = event.frames, event.chunk + 1
        elif isinstance(event, ChunkDone):
            self._follow_chunk(event)

    def _begin(self, chunk: int) -> None:
        self.chunk, self.step, self.steps_in_chunk, self.chunk_started = chunk, None, 0, self.clock()

    def _follow_chunk(self, event: ChunkDone) -> None:
        if self.recent and not self.warm:  # the first chunk is slower: it has more steps, and the device is cold
            self.recent = ()
            self.warm = True
        self.recent = (*self.recent, (event.frames - self.frames_done, event.seconds))[-RECENT_CHUNKS:]
        self.frames_done = event.frames
        self.steps_per_chunk = max(1, self.steps_in_chunk)
        self.phase = "denoise"
        if self.step is None or self.step.chunk == event.chunk:
            self._begin(event.chunk + 1)

    @property
    def known(self) -> FilmStarted:
        """The film; only phases come before it is known."""
        assert self.film is not None
        return self.film

    @property
    def fraction(self) -> float | None:
        """The share of the film's work that is done, 0 to 1. Decoding a chunk counts as one more step.

        None, like `seconds_left`, for a film of unknown length.
        """
        if self.known.chunks is None:
            return None
        in_chunk = min(self.steps_in_chunk, self.steps_per_chunk) / (self.steps_per_chunk + 1)
        return min(1.0, (self.chunk + in_chunk) / self.known.chunks)

    @property
    def frames_per_second(self) -> float | None:
        """The speed over the recent chunks; None before the first is done."""
        seconds = sum(seconds for _, seconds in self.recent)
        return sum(frames for frames, _ in self.recent) / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """The estimated time left, by the mean of the recent chunks; None before the first is done."""
        if not self.recent or self.known.chunks is None:
            return None
        chunk_seconds = sum(seconds for _, seconds in self.recent) / len(self.recent)
        chunks_left = self.known.chunks - self.chunk
        if chunks_left == 0:
            return 0.0
        return max(0.0, chunk_seconds - (self.clock() - self.chunk_started)) + chunk_seconds * (chunks_left - 1)

    @property
    def place_text(self) -> str:
        """The chunk and, during denoising, stage and step; all counted from 1."""
        chunk = self.chunk_text(self.chunk + 1)
        if self.phase != "denoise" or self.step is None:
            return f"{chunk}, {PHASES[self.phase or 'denoise']}"
        return (
            f"{chunk}, stage {self.step.stage + 1}/{self.known.stages}, "
            f"step {self.step.step + 1}/{self.step.steps_in_stage}"
        )

    def chunk_text(self, number: int) -> str:
        chunks = self.known.chunks
        return f"chunk {number}" if chunks is None else f"chunk {min(number, chunks)}/{chunks}"

    @property
    def frames_text(self) -> str:
        return _of(self.frames_done, self.known.frames, "/") + " frames"

    @property
    def speed_text(self) -> str:
        return f"{self.frames_per_second:.3g} frames/s" if self.frames_per_second else ""

    @property
    def left_text(self) -> str:
        """The time left, or "" for a film of unknown length."""
        if self.known.chunks is None:
            return ""
        return "-:-- left" if self.seconds_left is None else f"{format_duration(self.seconds_left)} left"

    @property
    def film_text(self) -> str:
        """The seconds of film that are done, and the total."""
        in_all = None if self.known.frames is None else f"{self.known.frames / self.known.fps:.1f}"
        return f"film {_of(f'{self.frames_done / self.known.fps:.1f}', in_all, ' of ')} s"


def show_all(events: Generator[T, None, None], show: Callable[[T], None], session: Session) -> None:
    """Show each event of a render. Ctrl-C, wherever it strikes, becomes Interrupted, which says what is safe."""
    try:
        try:
            for event in events:
                show(event)
        except KeyboardInterrupt as stop:
            events.throw(stop)
    except KeyboardInterrupt:
        raise session.stopped() from None


class FilmsView:
    """Shows the films of one command, and at the end, as a `table`, what became of each of several.

    Attributes:
        view: displays the events; it is opened within the block, so that the table comes after it.
        failed: names of films that failed, whose errors were shown.
    """

    def __init__(self, jobs: Sequence[Job], *, table: bool) -> None:
        self.jobs = jobs
        self.view: View = SilentView()
        self.failed: list[str] = []
        self._table = table and len(jobs) > 1
        self._labelled = len(jobs) > 1 and jobs[0].options.lanes > 1
        self._views: dict[int, View] = {}
        self._ends: dict[int, FilmDone | HeliosError] = {}
        self._begun: set[int] = set()

    def __enter__(self) -> FilmsView:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if self._table:
            self._print_table(error)

    def show(self, film_event: tuple[Job | None, Event | HeliosError]) -> None:
        job, event = film_event
        if job is not None:
            self._begun.add(id(job))
            if isinstance(event, FilmDone | HeliosError):
                self._ends[id(job)] = event
        if isinstance(event, HeliosError):
            self.failed += [] if job is None else [job.film.name]
            console.error(event)
        else:
            self._view_of(job).show(event)

    def _view_of(self, job: Job | None) -> View:
        if job is None or not self._labelled:
            return self.view
        return self._views.setdefault(id(job), self.view.of(job.film.name))  # titles may be equal, names are not

    def _print_table(self, error: BaseException | None) -> None:
        rows: list[tuple[str, ...]] = [("film", "result", "frames", "seconds", "frames/s", "output or error")]
        rows += [self._row(job, error) for job in self.jobs]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            numbers = [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:5], strict=True)]
            console.status("  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]), *numbers, row[5]]))

    def _row(self, job: Job, error: BaseException | None) -> tuple[str, ...]:
        """Return the row of a film. `error`, which ended the command, applies to films that began and did not end."""
        end = self._ends.get(id(job), error if id(job) in self._begun else None)
        if isinstance(end, FilmDone):
            speed = f"{end.frames_per_second:.3g}" if end.frames > end.frames_reused else "reused"
            return job.film.name, "done", str(end.frames), f"{end.seconds:.1f}", speed, job.output
        if end is None:
            return job.film.name, "not tried", "", "", "", ""
        result = "stopped" if isinstance(end, Interrupted) else "failed"
        message = end.message if isinstance(end, HeliosError) else f"bug: {type(end).__name__}"
        return job.film.name, result, "", "", "", message.splitlines()[0]


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


class PlainView:
    """Prints lines to stderr, for logs: the film, each phase once, each chunk, and a summary.

    `before` is printed before each line.
    """

    def __init__(self, before: str = "") -> None:
        self.before = before
        self.track = Track()
        self.phases: set[str] = set()
        self.reused = 0

    def of(self, film: str) -> PlainView:
        return PlainView(f"{film}: ")

    def show(self, event: Event) -> None:
        if isinstance(event, ChunksReused):
            self.reused += event.count
        elif self.reused:  # they come one at a time, hundreds in a long film
            self._say(f"{counted(self.reused, 'chunk')} from earlier renders, {self.track.film_text}")
            self.reused = 0
        self.track.follow(event)
        if isinstance(event, FilmStarted):
            self.track = Track(event)
            self._say(*start_lines(event, named=not self.before))
        elif isinstance(event, Notice):
            console.notice(self.before + event.message)
        elif isinstance(event, PromptTaken):
            self._say(taken_line(event))
        elif isinstance(event, PhaseStarted) and event.phase not in self.phases:
            self.phases.add(event.phase)
            self._say(PHASES[event.phase])
        elif isinstance(event, ChunkDone):
            self._say(self._chunk_line(event))
        elif isinstance(event, FilmDone) and self.track.has_begun(event):
            self._say(*summary_lines(event, self.track.known))
            self.track = Track()
            self.phases.clear()

    def _say(self, *lines: str) -> None:
        for line in lines:
            console.status(self.before + line)

    def _chunk_line(self, done: ChunkDone) -> str:
        track = self.track
        parts = (track.frames_text, track.film_text, track.speed_text, track.left_text)
        return f"{track.chunk_text(done.chunk + 1)} in {done.seconds:.1f} s: {', '.join(filter(None, parts))}"


class RichView:
    """Redraws two lines on the terminal: a bar, and the place in the chunk. They vanish at the end."""

    def __init__(self, terminal: RichConsole) -> None:
        from rich.live import Live
        from rich.spinner import Spinner

        self.track = Track()
        self.spinner = Spinner("dots" if terminal.encoding.startswith("utf") else "line")
        self.live = Live(get_renderable=self._draw, console=terminal, transient=True, refresh_per_second=8)

    def of(self, film: str) -> PlainView:
        return PlainView(f"{film}: ")

    def __enter__(self) -> RichView:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def show(self, event: Event) -> None:
        self.track.follow(event)
        if isinstance(event, FilmStarted):
            self.track = Track(event)
            _say_all(start_lines(event))
        elif isinstance(event, Notice):
            console.notice(event.message)
        elif isinstance(event, PromptTaken):
            console.status(taken_line(event))
        elif isinstance(event, FilmDone) and self.track.has_begun(event):
            film, self.track = self.track.known, Track()
            self.live.refresh()  # else the bar is drawn once more, below the summary
            _say_all(summary_lines(event, film))

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        track = self.track
        if track.phase is None:
            return Text("")
        if track.phase not in ("denoise", "decode"):
            self.spinner.update(text=f"{PHASES[track.phase]}  {format_duration(track.clock() - track.phase_started)}")
            return self.spinner
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        line.width = min(BAR_LINE_WIDTH, self.live.console.width)
        line.add_column(ratio=1)
        for _ in range(3):
            line.add_column(no_wrap=True)
        fraction = track.fraction
        percent = "" if fraction is None else f"{int(100 * fraction)} %"
        bar = ProgressBar(total=1.0, completed=fraction or 0.0, pulse=fraction is None, complete_style="cyan")
        line.add_row(bar, percent, track.frames_text, track.left_text)
        place = "  ".join((track.place_text, track.film_text, track.speed_text))
        return Group(line, Text(place, no_wrap=True, overflow="ellipsis"))


def start_lines(film: FilmStarted, *, named: bool = True) -> list[str]:
    """Return lines about the film that begins; `named` if nothing else names it."""
    size = f"{film.width}x{film.height}"
    if film.frames is None or film.chunks is None:
        what = f"{size} at {film.fps:g} fps, as long as prompts come"
    else:
        length = f"{counted(film.frames, 'frame')}, {film.frames / film.fps:.1f} s at {film.fps:g} fps"
        what = f"{length}, {size}, {counted(film.chunks, 'chunk')}"
    return [
        f"{film.film}: " * named + what,
        f"model {film.model} on {film.device} in {film.dtype}, to {film.output}",
    ]


def taken_line(taken: PromptTaken) -> str:
    """Return a line about a prompt that takes effect."""
    return f"from chunk {taken.chunk + 1} on, {taken.transition}: {taken.prompt}"


def summary_lines(done: FilmDone, film: FilmStarted) -> list[str]:
    """Return lines about a finished film: frames, speed, memory, and seconds by phase."""
    memory = f"peak memory {format_bytes(done.peak_host_bytes)}"
    if done.peak_device_bytes is not None:
        memory += f" and {format_bytes(done.peak_device_bytes)} on the device"
    if done.peak_vae_device_bytes is not None:
        memory += f", {format_bytes(done.peak_vae_device_bytes)} on that of the VAE"
    speed = f"{done.frames_per_second:.3g} frames/s"
    if done.frames_reused == done.frames:
        speed = "every frame from earlier renders"
    elif done.frames_reused:
        speed += f", {counted(done.frames_reused, 'frame')} from earlier renders"
    lines = [
        f"wrote {done.output}: {counted(done.frames, 'frame')}, {done.frames / film.fps:.1f} s",
        f"  in {format_duration(done.seconds)}, {speed}, {memory}",
    ]
    if done.phases:
        lines.append("  " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in done.phases.items()))
    return lines


def format_duration(seconds: float) -> str:
    """Format seconds: `75` as `1:15`, `3675` as `1:01:15`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _of(done: object, in_all: object | None, between: str) -> str:
    """Format `3/9`, or `3` if the total is not known."""
    return f"{done}" if in_all is None else f"{done}{between}{in_all}"


def _say_all(lines: list[str]) -> None:
    for line in lines:
        console.status(line)
