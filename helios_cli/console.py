"""The only module that prints: data to stdout, everything said about it to stderr.

Rich is imported when something needs a style or a table, so that a command that prints plain text does not pay for it.
Text is never read as markup: a prompt or a file name with `[brackets]` is printed as it is. What a terminal would obey,
or hide, is printed as an escape.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli.errors import HeliosError
from helios_cli.units import format_bytes
from helios_cli.visible import visible

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

UNBOUNDED_WIDTH = 10_000
"""Columns of a list that goes into a pipe: cells are wrapped to fit a terminal, never for a program that reads them."""

PAGE_WIDTH = 80
"""Columns of a report that goes into a pipe, unless COLUMNS says otherwise."""

LABEL_WIDTH = 12
"""Columns of a report's labels, without the space behind them."""

GAP = 2
"""Columns between the cells of a table."""

LEAST_CELL = 12
"""Columns that a cell is not wrapped below: a number with its unit stays whole."""


class Console:
    """Output of one process. With `json` set (by `JsonFlag`), `result` speaks and `line` and `table` are silent."""

    def __init__(self) -> None:
        self.json = False

    def result(self, data: dict | list) -> None:
        """Print `data` (plain values and paths) as JSON on stdout if `--json` was given, else nothing."""
        if self.json:
            print(json.dumps(data, indent=2, allow_nan=False, default=os.fspath))

    def line(self, text: str = "") -> None:
        """Print one line of a report on stdout."""
        if not self.json:
            print(visible(text))

    def prose(self, text: str, *, label: str = "") -> None:
        """Print text of a report on stdout, wrapped to the page; where there is a `label`, as a column beside it."""
        if not self.json:
            self._print_wrapped(text, label and f"{label:{LABEL_WIDTH}} ", self._page())

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        data: dict | list | None = None,
        report: bool = False,
    ) -> None:
        """Print rows under headings on stdout, or `data` in their place under `--json`. Numbers are right-aligned.

        In a pipe a row is one line, so that programs can read it; that of a `report` is wrapped to the page.
        """
        if data is not None:
            self.result(data)
        if not self.json:
            self._print_table(columns, rows, self._page() if report else self._rich(stderr=False))

    def record(self, data: dict) -> None:
        """Print `data` on stdout as one line of NDJSON, at once."""
        print(json.dumps(data, allow_nan=False, default=os.fspath), flush=True)

    def flush(self) -> None:
        """Write out what was printed on stdout. Raises OSError if its reader has gone or its disk is full."""
        print(end="", flush=True)

    def status(self, text: str) -> None:
        """Say on stderr how far the work is: a plain line of progress."""
        with _told():
            print(visible(text), file=sys.stderr, flush=True)

    def notice(self, text: str) -> None:
        """Say on stderr what the user should know and need not act on."""
        self._say("note", "cyan", text)

    def hint(self, text: str) -> None:
        """Say on stderr what to do next."""
        self._say("hint", "green", text)

    def warning(self, text: str) -> None:
        """Say on stderr what the user may want to change."""
        self._say("warning", "yellow", text)

    def error(self, error: HeliosError) -> None:
        """Say on stderr what failed, and what to do about it."""
        self._say("error", "bold red", error.message)
        if error.hint:
            self.hint(error.hint)

    def bug(self, error: BaseException) -> None:
        """Say on stderr that helios itself is at fault."""
        self._say("bug", "bold red", f"{type(error).__name__}: {error}")

    def live(self) -> RichConsole | None:
        """The stderr console that can redraw lines, or None where lines can only be added (pipe, TERM=dumb)."""
        rich = self._rich(stderr=True)
        return rich if rich.file.isatty() and not rich.is_dumb_terminal else None

    @contextmanager
    def progress_bytes(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of `total` bytes are done; yields `advance(count)`, which any thread may call."""
        rich = self.live()
        if rich is None:
            yield _PlainBytes(description, total, self.status).advance
            return
        from rich import progress as bars

        columns = (bars.BarColumn(None), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
        name = bars.TextColumn("{task.description}", markup=False)
        with bars.Progress(name, *columns, console=rich, expand=True) as progress:
            task = progress.add_task(visible(description), total=total)
            yield lambda count: progress.advance(task, count)

    def _rich(self, *, stderr: bool) -> RichConsole:
        """A console on the stream of this moment. NO_COLOR leaves no escape code at all, not even bold; FORCE_COLOR
        colours a pipe, and makes no terminal of it."""
        from rich.console import Console as RichConsole

        color = None if os.environ.get("NO_COLOR") else "auto"
        rich = RichConsole(stderr=stderr, color_system=color, markup=False, highlight=False, emoji=False)
        if not rich.file.isatty():
            rich.width = UNBOUNDED_WIDTH
        return rich

    def _page(self) -> RichConsole:
        """The console of a report on stdout: as wide as the terminal; in a pipe COLUMNS, or 80."""
        rich = self._rich(stderr=False)
        if not rich.file.isatty():
            columns = os.environ.get("COLUMNS", "")
            rich.width = int(columns) if columns.isdecimal() and int(columns) else PAGE_WIDTH
        return rich

    def _say(self, label: str, style: str, text: str) -> None:
        from rich.text import Text

        rich = self._rich(stderr=True)
        text = re.sub(r"\n(?! )", "\n  ", visible(text))  # no line of a name passes for one of ours
        with _told():
            with rich.capture() as captured:  # and not printed by Rich, which would write into a live bar
                rich.print(Text.assemble((f"{label}:", style), " ", text), soft_wrap=True)
            print(captured.get(), end="", file=sys.stderr, flush=True)

    def _print_wrapped(self, text: str, label: str, rich: RichConsole) -> None:
        from rich.text import Text

        room = max(rich.width - len(label), LEAST_CELL)
        for line in Text(visible(text)).wrap(rich, room, overflow="fold") or [Text()]:
            print((label + line.plain).rstrip())
            label = " " * len(label)

    def _print_table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], rich: RichConsole) -> None:
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        cells = [[visible(str(cell)) for cell in row] for row in rows]
        natural = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
        widths = _fitted(natural, rich.width - GAP * (len(columns) - 1))
        if widths is None:
            self._print_records(columns, cells, rich)
            return
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for index, (name, width) in enumerate(zip(columns, widths, strict=True)):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            justify = "right" if numeric else "left"
            table.add_column(Text(name), justify=justify, min_width=width, max_width=width, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        if rich.file.isatty():
            rich.print(table)
            return
        with rich.capture() as captured:
            rich.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip())

    def _print_records(self, columns: Sequence[str], cells: list[list[str]], rich: RichConsole) -> None:
        """A line a cell and a paragraph a row, where columns side by side would be too narrow to read."""
        label_width = max(map(len, columns)) + GAP
        for number, row in enumerate(cells):
            if number:
                print()
            for name, cell in zip(columns, row, strict=True):
                self._print_wrapped(cell, name.strip().ljust(label_width), rich)


def _fitted(widths: Sequence[int], room: int) -> list[int] | None:
    """Widths of columns that fit into `room`, the widest giving way first; None where that makes cells too narrow."""
    fitted = list(widths)
    while sum(fitted) > room:
        widest = max(fitted)
        if widest <= LEAST_CELL:
            return None
        fitted[fitted.index(widest)] -= 1
    return fitted


class _PlainBytes:
    """Byte progress where lines can only be added: one line at every tenth."""

    def __init__(self, description: str, total: int, say: Callable[[str], None]) -> None:
        self.description, self.total, self.say = description, total, say
        self.done = self.tenths = 0
        self.lock = threading.Lock()
        say(f"{description}: {format_bytes(total)}")

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count
            tenths = 10 * self.done // self.total if self.total else 10
            if tenths > self.tenths:
                self.tenths = tenths
                done, total = format_bytes(self.done), format_bytes(self.total)
                self.say(f"{self.description}: {done} of {total}, {10 * tenths} %")


@contextmanager
def _told() -> Iterator[None]:
    """A write to stderr. Where it fails, its reader having gone or its disk being full, work goes on in silence."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # what is left must not fail again at the end


console = Console()


def _use_json(wanted: bool) -> bool:
    console.json = wanted
    return wanted


JsonFlag = Annotated[bool, typer.Option("--json", callback=_use_json, help="Print the result as JSON on stdout.")]
"""The `--json` of every command that reports something: `json: JsonFlag = False`; the body calls `console.result`."""
