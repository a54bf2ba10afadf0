"""The only module that prints: data to stdout, everything else to stderr.

Rich is imported for styles, and for text that must be wrapped, so that other text does not wait for it.
Text is never read as markup: a prompt or a file name with `[brackets]` is printed as it is. Control and
invisible characters are printed as escapes.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol, TextIO

import typer

from helios_cli.errors import HeliosError
from helios_cli.units import format_bytes
from helios_cli.visible import visible

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

UNBOUNDED_WIDTH = 10_000
"""Width of a list in a pipe: cells are wrapped for a terminal, never for a program."""

PAGE_WIDTH = 80
"""Width of a report in a pipe, unless COLUMNS is set."""

LABEL_WIDTH = 12
"""Width of a report's labels, without the space after them."""

GAP = 2
"""Columns between the cells of a table."""

LEAST_CELL = 12
"""Minimum width of a cell: a number with its unit stays whole."""


class Lines(Protocol):
    """Lines at the end of the terminal that are redrawn."""

    def paused(self) -> AbstractContextManager[None]:
        """Take the lines off the terminal for a while."""
        ...


class Prose(NamedTuple):
    """A part of a report: text, wrapped to the page, in a column next to its `label` if it has one."""

    text: str = ""
    label: str = ""


class Table(NamedTuple):
    """A part of a report: an empty line, and rows under headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


class Console:
    """The output of one process. With `json` set (by `JsonFlag`), `result` prints, and `line` and `table` do not.

    Attributes:
        lines: lines that are being redrawn; None if there are none.
        turn: held by the thread that prints on the terminal, or redraws lines there.
    """

    def __init__(self) -> None:
        self.json = False
        self.lines: Lines | None = None
        self.turn = threading.RLock()

    def result(self, data: dict | list) -> None:
        """Print `data` (plain values and paths) as JSON on stdout if `--json` was given."""
        if self.json:
            print(json.dumps(data, indent=2, allow_nan=False, default=os.fspath))

    def line(self, text: str = "") -> None:
        """Print one line of a report on stdout."""
        if not self.json:
            print(visible(text))

    def prose(self, text: str, *, label: str = "") -> None:
        """Print text of a report on stdout, wrapped to the page; with a `label`, as a column next to it."""
        if not self.json:
            self._print_wrapped(text, label and f"{label:{LABEL_WIDTH}} ", self._width(report=True))

    def show(self, parts: Iterable[Prose | Table]) -> None:
        """Print a report on stdout, part by part."""
        for part in () if self.json else parts:
            if isinstance(part, Prose):
                self.prose(part.text, label=part.label)
            else:
                self.line()
                self.table(part.columns, part.rows, report=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        data: dict | list | None = None,
        report: bool = False,
    ) -> None:
        """Print rows under headings on stdout, or `data` instead with `--json`. Numbers are right-aligned.

        In a pipe a row is one line, so that programs can read it; rows of a `report` are wrapped to the page.
        """
        if data is not None:
            self.result(data)
        if not self.json:
            self._print_table(columns, rows, self._width(report=report))

    def record(self, data: dict) -> None:
        """Print `data` on stdout as one line of NDJSON, at once."""
        print(json.dumps(data, allow_nan=False, default=os.fspath), flush=True)

    def flush(self) -> None:
        """Write out what was printed on stdout. Raises OSError if the reader is gone or the disk is full."""
        print(end="", flush=True)

    def status(self, text: str) -> None:
        """Print a line of progress on stderr."""
        with self.turn, _ignoring_failure():
            print(visible(text), file=sys.stderr, flush=True)

    def notice(self, text: str) -> None:
        """Print a note on stderr that needs no action."""
        self._say("note", "cyan", text)

    def hint(self, text: str) -> None:
        """Print on stderr what to do next."""
        self._say("hint", "green", text)

    def warning(self, text: str) -> None:
        """Print a warning on stderr: something the user may want to change."""
        self._say("warning", "yellow", text)

    def error(self, error: HeliosError) -> None:
        """Print on stderr what failed, and what to do about it."""
        self._say("error", "bold red", error.message)
        if error.hint:
            self.hint(error.hint)

    def bug(self, error: BaseException) -> None:
        """Print on stderr that helios itself is at fault."""
        self._say("bug", "bold red", f"{type(error).__name__}: {error}")

    def live(self) -> RichConsole | None:
        """Return the stderr console if it can redraw lines; None if not (pipe, TERM=dumb)."""
        rich = self._rich(stderr=True)
        return rich if rich.file.isatty() and not rich.is_dumb_terminal else None

    @contextmanager
    def progress_bytes(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of `total` bytes; yields `advance(count)`, which any thread may call."""
        rich = self.live()
        if rich is None:
            yield _plain_bytes(description, total, self.status)
            return
        from rich import progress as bars

        columns = (bars.BarColumn(None), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
        name = bars.TextColumn("{task.description}", markup=False)
        with self._without_lines(), bars.Progress(name, *columns, console=rich, expand=True) as progress:
            task = progress.add_task(visible(description), total=total)
            yield lambda count: progress.advance(task, count)

    def _without_lines(self) -> AbstractContextManager[None]:
        return nullcontext() if self.lines is None else self.lines.paused()

    def _rich(self, *, stderr: bool) -> RichConsole:
        """Make a console on the current stream.

        NO_COLOR removes all escape codes, even bold; FORCE_COLOR colours a pipe without treating it as a terminal."""
        from rich.console import Console as RichConsole

        color: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
        rich = RichConsole(stderr=stderr, color_system=color, markup=False, highlight=False, emoji=False)
        if not rich.file.isatty():
            rich.width = UNBOUNDED_WIDTH
        return rich

    def _width(self, *, report: bool) -> int:
        """Return the width of the terminal; in a pipe that of a page, or without limit if it is no `report`."""
        if sys.stdout.isatty():
            return self._rich(stderr=False).width
        if not report:
            return UNBOUNDED_WIDTH
        columns = os.environ.get("COLUMNS", "")
        return int(columns) if columns.isdecimal() and int(columns) else PAGE_WIDTH

    def _say(self, label: str, style: str, text: str) -> None:
        text = re.sub(r"\n(?! )", "\n  ", visible(text))  # a line break in a name must not start a line of its own
        with self.turn, _ignoring_failure():
            print(self._styled(label, style, text), end="", file=sys.stderr, flush=True)

    def _styled(self, label: str, style: str, text: str) -> str:
        if _is_plain(sys.stderr) and "\t" not in text:
            return f"{label}: {text}\n"
        from rich.text import Text

        rich = self._rich(stderr=True)
        with rich.capture() as captured:  # printed by Rich it would end up inside a live bar
            rich.print(Text.assemble((f"{label}:", style), " ", text), soft_wrap=True)
        return captured.get()

    def _print_wrapped(self, text: str, label: str, width: int) -> None:
        text, room = visible(text), max(width - len(label), LEAST_CELL)
        if _fits(text, room):
            print((label + text).rstrip())
            return
        from rich.text import Text

        for line in Text(text).wrap(self._rich(stderr=False), room, overflow="fold") or [Text()]:
            print((label + line.plain).rstrip())
            label = " " * len(label)

    def _print_table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> None:
        cells = [[visible(str(cell)) for cell in row] for row in rows]
        widths = [max(map(_cells, column)) for column in zip(columns, *cells, strict=True)]
        least = [min(width, LEAST_CELL) for width in widths]
        if sum(least) + GAP * (len(columns) - 1) > width:
            self._print_records(columns, cells, width)
            return
        numeric = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(columns))]
        if _is_plain(sys.stdout):
            lines = [_aligned(row, widths, numeric) for row in (columns, *cells)]
            if all(_fits(line, width) for line in lines):
                print("\n".join(map(str.rstrip, lines)))
                return
        from rich.table import Table
        from rich.text import Text

        rich = self._rich(stderr=False)
        rich.width = width
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for name, narrowest, right in zip(columns, least, numeric, strict=True):
            justify: Literal["right", "left"] = "right" if right else "left"
            table.add_column(Text(name), justify=justify, min_width=narrowest, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        if rich.file.isatty():
            rich.print(table)
            return
        with rich.capture() as captured:
            rich.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip())

    def _print_records(self, columns: Sequence[str], cells: list[list[str]], width: int) -> None:
        """Print one line per cell and one paragraph per row, where columns would be too narrow to read."""
        label_width = max(map(len, columns)) + GAP
        for number, row in enumerate(cells):
            if number:
                print()
            for name, cell in zip(columns, row, strict=True):
                self._print_wrapped(cell, name.strip().ljust(label_width), width)


def _is_plain(stream: TextIO) -> bool:
    """Return whether a stream gets no styles, as Rich decides it."""
    return not (stream.isatty() or {"FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys())


def _fits(text: str, width: int) -> bool:
    """Return whether text is one line of at most `width` columns, without tabs."""
    return text.isprintable() and _cells(text) <= width


def _aligned(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    """Return the cells of a row as one line, those of numeric columns to the right."""
    gaps = (" " * (width - _cells(cell)) for cell, width in zip(row, widths, strict=True))
    cells = (gap + cell if right else cell + gap for gap, cell, right in zip(gaps, row, numeric, strict=True))
    return (" " * GAP).join(cells)


def _cells(text: str) -> int:
    """Return the columns that text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _plain_bytes(description: str, total: int, say: Callable[[str], None]) -> Callable[[int], None]:
    """Return `advance` where lines can only be appended: it prints one for every tenth."""
    done = tenths = 0
    lock = threading.Lock()

    def advance(count: int) -> None:
        nonlocal done, tenths
        with lock:
            done += count
            now = 10 * done // total if total else 10
            if now > tenths:
                tenths = now
                say(f"{description}: {format_bytes(done)} of {format_bytes(total)}, {10 * tenths} %")

    say(f"{description}: {format_bytes(total)}")
    return advance


@contextmanager
def _ignoring_failure() -> Iterator[None]:
    """Write to stderr; if that fails (the reader is gone, the disk is full), go on silently."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the rest must not fail again at exit


console = Console()


def _use_json(wanted: bool) -> bool:
    console.json = wanted
    return wanted


JsonFlag = Annotated[bool, typer.Option("--json", callback=_use_json, help="Print the result as JSON on stdout.")]
"""The `--json` of commands that report something: `json: JsonFlag = False`; the body calls `console.result`."""
