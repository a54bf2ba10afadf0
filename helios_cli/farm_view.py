"""Displays of films that several workers render: a line or a row for each worker, and the totals of all.

A `FarmTrack` has the numbers; whoever opens a view here lets it follow each event before the event is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_cli.console import console
from helios_cli.engine.events import (
    ChunkDone,
    ChunksReused,
    Event,
    FilmDone,
    FilmStarted,
    Notice,
    PhaseStarted,
    SegmentDone,
    SegmentStarted,
    Worker,
    WorkerLost,
    WorkerReady,
)
from helios_cli.farm_track import FarmTrack, Totals, WorkerTrack
from helios_cli.files import by_number
from helios_cli.progress import LiveLines, bar_line, start_lines, summary_lines
from helios_cli.stop import IsStopped
from helios_cli.track import PHASES, left_text, speed_text, took_text
from helios_cli.units import counted, format_duration, format_figure
from helios_cli.visible import printable

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.text import Text

TOTAL_SECONDS = 30.0
"""The least time from one line of totals to the next, where lines can only be appended."""

SILENT_SECONDS = 60.0
"""The time without an event after which a row says so: a step takes seconds."""

GAP = 2
"""Columns between the cells of a row."""

LEAST_ROOM = 2
"""Lines of the terminal that stay free for what is printed above the rows."""


@dataclass(frozen=True)
class OfFilm:
    """A display of one film in the view of a farm."""

    view: FarmView
    film: str

    def show(self, event: Event) -> None:
        self.view.show_of(self.film, event)

    def of(self, film: str) -> OfFilm:
        return self.view.of(film)


class FarmView:
    """Prints what stays on the screen: notices, lost workers, finished films."""

    def __init__(self, track: FarmTrack) -> None:
        self.track = track

    def of(self, film: str) -> OfFilm:
        return OfFilm(self, film)

    def show(self, event: Event) -> None:
        self.show_of(None, event)

    def show_of(self, film: str | None, event: Event) -> None:
        before = before_line(film, event)
        if isinstance(event, Notice):
            console.notice(before + event.message.removeprefix(f"{film}: "))
        elif isinstance(event, WorkerLost):
            console.warning(f"{before}worker lost: {event.reason}")
        elif isinstance(event, FilmDone) and film is not None:
            started = self.track.film(film)
            if started is not None:  # else it was finished before
                _say(*(summary_lines(event, started) if len(self.track.films) == 1 else [before + done_line(event)]))


class PlainFarmView(FarmView):
    """Prints lines to stderr, for logs: `worker: film: what`. Each chunk is one; now and then the totals are."""

    def __init__(self, track: FarmTrack) -> None:
        super().__init__(track)
        self._reused: dict[tuple[str | None, str], int] = {}
        self._loaded: set[tuple[Worker | None, int | None]] = set()
        self._total_shown = track.clock()

    def show_of(self, film: str | None, event: Event) -> None:
        before = before_line(film, event)
        if isinstance(event, ChunksReused):
            self._reused[film, before] = self._reused.get((film, before), 0) + event.count
            return
        if count := self._reused.pop((film, before), 0):  # they come one at a time, hundreds in a long film
            _say(f"{before}{counted(count, 'chunk')} from earlier renders")
        super().show_of(film, event)
        if line := self._line(film, event):
            _say(before + line)
        if isinstance(event, ChunkDone | FilmDone):
            self._show_total()

    def _line(self, film: str | None, event: Event) -> str:
        if isinstance(event, FilmStarted):
            return ", ".join(start_lines(event, named=False))
        if isinstance(event, WorkerReady):
            worker = event.worker
            return "ready" if worker is None else f"ready on {worker.host}, {worker.device}".rstrip(", ")
        if isinstance(event, PhaseStarted) and event.phase in ("load", "after", "finish"):
            return "" if event.phase == "load" and self._has_loaded(event) else PHASES[event.phase]
        if isinstance(event, SegmentStarted):
            return f"{segment_text(event)} begins, {counted(event.chunks, 'chunk')}"
        if isinstance(event, ChunkDone):
            return self._chunk_line(event)
        if isinstance(event, SegmentDone):
            return f"{segment_text(event)} done in {format_duration(event.seconds)}"
        return ""

    def _has_loaded(self, event: Event) -> bool:
        """Return whether the process of the worker loaded the model before; later segments find it there."""
        process = (event.worker, event.pid)
        has_loaded = process in self._loaded
        self._loaded.add(process)
        return has_loaded

    def _chunk_line(self, done: ChunkDone) -> str:
        worker = None if done.worker is None else self.track.worker(done.worker.name)
        if worker is None or worker.segment is None:
            return f"chunk {done.chunk + 1}/{done.chunks} of the film in {took_text(done.seconds)}"
        segment = worker.segment
        chunk = f"chunk {done.chunk - segment.chunk + 1}/{segment.chunks} in {took_text(done.seconds)}"
        return f"{segment_text(segment)}, {chunk}, {speed_text(worker.recent.frames_per_second)}".rstrip(", ")

    def _show_total(self) -> None:
        if self.track.clock() - self._total_shown >= TOTAL_SECONDS:
            self._total_shown = self.track.clock()
            totals = self.track.totals()
            parts = [*total_parts(totals), frames_text(totals), _left_text(totals)]
            _say("total: " + ", ".join(filter(None, parts)))


class RichFarmView(FarmView, LiveLines):
    """Redraws a row for each worker, a bar and the totals on the terminal, until `is_stopped`."""

    def __init__(self, track: FarmTrack, terminal: RichConsole, is_stopped: IsStopped = lambda: False) -> None:
        FarmView.__init__(self, track)
        LiveLines.__init__(self, terminal, self.draw, per_second=4)
        self._is_stopped = is_stopped
        self._said: set[str] = set()
        self._stopped_at: float | None = None
        self._ellipsis = "…" if terminal.encoding.startswith("utf") else "~"

    def show_of(self, film: str | None, event: Event) -> None:
        if isinstance(event, FilmStarted):
            lines = start_lines(event) if len(self.track.films) == 1 else [f"model {event.model} in {event.dtype}"]
            _say(*(line for line in lines if line not in self._said))
            self._said.update(lines)
        super().show_of(film, event)

    def draw(self) -> RenderableType:
        from rich.console import Group

        width, height = self._terminal.size
        totals = self.track.totals()
        now = self.track.clock()
        if totals.are_over or self._is_stopped():
            self._stopped_at = self._stopped_at or now
            return _text(f"stopping the workers {format_duration(now - self._stopped_at)}")
        if not self.track.workers:
            return _text(f"starting the workers {format_duration(now - self.track.began)}")
        lines = [_text(line) for line in packed(total_parts(totals), width)]
        room = height - LEAST_ROOM - 1 - len(lines)
        workers = sorted(self.track.workers, key=lambda worker: by_number(worker.worker.name))
        rows = worker_rows(workers, width, room, now, self._ellipsis)
        bar = bar_line(width, totals.fraction, frames_text(totals), _left_text(totals))
        # The totals are last, since keys that are pressed, ^C too, appear behind the last line and must not break it.
        return Group(*(_text(line, style) for line, style in rows), bar, *lines)


def before_line(film: str | None, event: Event) -> str:
    """Return what a line of an event begins with: its worker and its film."""
    names = (event.worker.name if event.worker else None, film)
    return "".join(f"{printable(name, 200)}: " for name in names if name is not None)


def done_line(done: FilmDone) -> str:
    """Return a line about a film that is done; its file is in the table at the end."""
    if done.frames_reused == done.frames:
        return f"done, {counted(done.frames, 'frame')} from earlier renders"
    parts = [f"done, {counted(done.frames, 'frame')} in {format_duration(done.seconds)}"]
    parts += [speed_text(done.frames_per_second)]
    parts += [f"{counted(done.frames_reused, 'frame')} from earlier renders"] if done.frames_reused else []
    return ", ".join(parts)


def segment_text(event: SegmentStarted | SegmentDone) -> str:
    return f"segment {event.segment + 1}/{event.segments}"


def frames_text(totals: Totals) -> str:
    return "" if totals.frames is None else f"{totals.frames_done}/{_about(totals, totals.frames)} frames"


def _left_text(totals: Totals) -> str:
    return "" if totals.are_over else left_text(totals.seconds_left)


def total_parts(totals: Totals) -> list[str]:
    """Return films or, of an only film, segments; chunks, speed, and workers."""
    parts = []
    if totals.films > 1:
        failed = f", {totals.films_failed} failed" if totals.films_failed else ""
        finishing = f", {totals.finishing} being finished" if totals.finishing else ""
        parts.append(f"films {totals.films_done}/{totals.films}{failed}{finishing}")
    elif totals.segments is not None:
        parts.append(f"segments {totals.segments_done}/{totals.segments}")
        parts += [PHASES["finish"]] if totals.finishing else []
    if totals.chunks is not None:
        parts.append(f"chunks {totals.chunks_done}/{_about(totals, totals.chunks)}")
    lost = f", {totals.lost} lost" if totals.lost else ""
    return [part for part in (*parts, speed_text(totals.frames_per_second)) if part] + [
        counted(totals.workers, "worker") + lost
    ]


def end_line(track: FarmTrack) -> str:
    """Return a line about the workers, and all that they rendered of several films."""
    totals = track.totals()
    seconds = (track.ended if totals.are_over else track.clock()) - track.began
    lost = f" ({totals.losses} lost on the way)" if totals.losses else ""
    workers = counted(totals.workers + totals.lost, "worker") + lost
    if totals.films == 1:
        return f"by {workers}"
    speed = speed_text(totals.frames_rendered / seconds) if seconds > 0 else ""
    frames = f"{counted(totals.frames_rendered, 'frame')} in {format_duration(seconds)}"
    return f"{workers}: " + ", ".join(filter(None, [frames, speed]))


def _about(totals: Totals, number: int) -> str:
    return f"{number}" if totals.is_exact else f"~{number}"


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Return parts on as few lines as hold them."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}{' ' * GAP}{part}" if lines[-1] else part
        lines = [*lines[:-1], longer] if len(longer) <= width else [*lines, part]
    return lines


@dataclass(frozen=True)
class Column:
    """A column of the rows of workers.

    Attributes:
        least: the width down to which it may be cut; None if it may not.
        rank: columns go in this order, the highest first, where there is no room; None if it never goes.
    """

    title: str
    cells: tuple[str, ...]
    least: int | None = None
    rank: int | None = None
    is_number: bool = False


def worker_rows(
    workers: Sequence[WorkerTrack], width: int, height: int, now: float, ellipsis: str
) -> list[tuple[str, str]]:
    """Return lines with their styles: a heading, a row for each worker, and one for those that have no room."""
    if not workers or height < 1:
        return []
    shown = workers if len(workers) < height else workers[: max(0, height - 2)]
    rest = workers[len(shown) :]
    rows = [("dim" if worker.state == "waiting" else "red" if worker.state == "lost" else "") for worker in shown]
    lines = list(zip(_table(shown, width, now, ellipsis), ["bold", *rows], strict=True)) if shown else []
    return [*lines, (_cut(_rest_text(rest, bool(shown)), width, ellipsis, middle=False), "dim")] if rest else lines


def _rest_text(workers: Sequence[WorkerTrack], some_shown: bool) -> str:
    states = Counter(worker.state for worker in workers)
    speed = sum(worker.recent.frames_per_second or 0 for worker in workers if worker.segment is not None)
    parts = [*(f"{count} {state}" for state, count in states.items()), speed_text(speed)]
    number = f"and {len(workers)} more" if some_shown else counted(len(workers), "worker")
    return f"{number}: {', '.join(filter(None, parts))}"


def _table(workers: Sequence[WorkerTrack], width: int, now: float, ellipsis: str) -> list[str]:
    """Return a heading and a line for each worker, none longer than `width`."""
    columns, widths = _columns(workers, now, is_short=False), None
    if (widths := _fitted(columns, width)) is None:
        columns = _columns(workers, now, is_short=True)
        while (widths := _fitted(columns, width)) is None and any(column.rank is not None for column in columns):
            last = max(columns, key=lambda column: -1 if column.rank is None else column.rank)
            columns = [column for column in columns if column is not last]
    widths = widths or [_natural(column) for column in columns]
    cells = [
        [_cut(cell, room, ellipsis, middle=column.title == "film") for cell in (column.title, *column.cells)]
        for column, room in zip(columns, widths, strict=True)
    ]
    numbers = [index for index, column in enumerate(columns) if column.is_number]
    lines = aligned(list(zip(*cells, strict=True)), numbers)
    return [_cut(line, width, ellipsis, middle=False) for line in lines]


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int]) -> list[str]:
    """Return rows as lines of columns, of which those of `numbers` are aligned on the right."""
    from rich.cells import cell_len  # a letter may take two columns

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        pairs = enumerate(zip(row, spaces, strict=True))
        cells = [space + cell if index in numbers else cell + space for index, (cell, space) in pairs]
        lines.append((" " * GAP).join(cells).rstrip())
    return lines


def _columns(workers: Sequence[WorkerTrack], now: float, *, is_short: bool) -> list[Column]:
    segments = [worker.segment for worker in workers]
    segment = [f"{s.segment + 1}/{s.segments}" if s else "" for s in segments]
    chunk = [f"{w.number}/{w.segment.chunks}" if w.segment else "" for w in workers]
    speed = [
        format_figure(worker.recent.frames_per_second) if worker.recent.frames_per_second and worker.segment else ""
        for worker in workers
    ]
    doing = [_doing(worker, now, is_short=is_short) for worker in workers]
    hosts = [printable(worker.worker.host, 200) for worker in workers]
    columns = [
        Column("worker", tuple(printable(worker.worker.name, 200) for worker in workers), least=6),
        Column("film", tuple(printable(worker.film or "", 200) for worker in workers), least=8 if is_short else 16),
        Column("segment", tuple(segment), rank=2, is_number=True),
        Column("chunk", tuple(chunk), is_number=True),
        Column("stage step" if is_short else "step", tuple(doing), least=10 if is_short else None, rank=1),
        Column("frames/s", tuple(speed), is_number=True),
        Column("device", tuple(printable(worker.worker.device, 200) for worker in workers), least=6, rank=3),
    ]
    return [*columns, Column("host", tuple(hosts), least=8, rank=4)] if len(set(hosts)) > 1 else columns


def _doing(worker: WorkerTrack, now: float, *, is_short: bool) -> str:
    """Return what a worker does: the stage and step, or its phase or state and for how long."""
    if worker.phase is None or worker.state == "lost":
        return f"{worker.state} {format_duration(now - worker.since)}" if worker.state != "rendering" else "starting"
    if worker.phase not in ("denoise", "decode"):
        phase = PHASES[worker.phase]
        return f"{phase.split()[0] if is_short else phase} {format_duration(now - worker.since)}"
    if now - worker.heard >= SILENT_SECONDS:
        return f"silent {format_duration(now - worker.heard)}"
    if worker.step is None:
        return PHASES[worker.phase]
    stage = f"{worker.step.stage + 1}" + (f"/{worker.stages}" if worker.stages else "")
    step = f"{worker.step.step + 1}/{worker.step.steps_in_stage}"
    return f"{stage:<5} {step}" if is_short else f"stage {stage}, step {step}"


def _natural(column: Column) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, (column.title, *column.cells)))


def _fitted(columns: Sequence[Column], room: int) -> list[int] | None:
    """Return widths of columns, the widest being cut first; None if they do not fit."""
    widths = [_natural(column) for column in columns]
    spare = room - sum(widths) - GAP * (len(widths) - 1)
    for _ in range(-spare):
        can = [i for i, column in enumerate(columns) if column.least is not None and widths[i] > column.least]
        if not can:
            return None
        widths[max(can, key=widths.__getitem__)] -= 1
    return widths


def _cut(text: str, width: int, ellipsis: str, *, middle: bool) -> str:
    """Return the text in `width` columns; `middle`: its end stays, where numbered names differ."""
    from rich.cells import cell_len, chop_cells

    if cell_len(text) <= width:
        return text
    room = max(0, width - len(ellipsis))
    tail = room // 2 if middle else 0
    end = chop_cells(text[::-1], tail)[0][::-1] if tail else ""
    return (chop_cells(text, room - tail)[0] if room > tail else "") + ellipsis + end


def _text(line: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(line, style=style, no_wrap=True, overflow="crop")


def _say(*lines: str) -> None:
    for line in lines:
        console.status(line)
