"""The console: which stream, which form, whatever the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from helios_cli.console import console
from helios_cli.errors import InputError
from helios_cli.progress import PlainView, open_view
from helios_cli.units import format_bytes, format_figure, format_seconds
from support.waiting import LONGEST


@pytest.fixture(autouse=True)
def plain_text(monkeypatch):
    monkeypatch.setattr(console, "json", False)


def in_terminal(code: str, columns: int = 80, **environment: str) -> str:
    """Return what a Python process writes to a terminal of `columns` columns, escape codes included."""
    parent, child = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    env |= {"TERM": "xterm-256color", "COLUMNS": str(columns), **environment}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=child, stdout=child, stderr=child, env=env)
    os.close(child)
    written = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # Linux's way to say that the last writer has gone
            piece = b""
        if not piece:
            break
        written += piece
    os.close(parent)
    assert process.wait(timeout=LONGEST) == 0, written
    return written.decode().replace("\r\n", "\n")


SHOW_ERROR = """
from helios_cli.console import console
from helios_cli.errors import InputError
console.error(InputError("shot [3]: no such key", hint="write prompt"))
"""


def test_error_goes_to_stderr_with_its_hint_and_markup_is_text(capsys):
    console.error(InputError("shot [bold]3[/bold]: no such key :smile:", hint="write `prompt`"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: shot [bold]3[/bold]: no such key :smile:\nhint: write `prompt`\n"


def test_a_long_message_in_a_pipe_stays_one_line(capsys):
    console.warning("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.process
@pytest.mark.parametrize(
    ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_color_only_where_it_is_wanted(environment, colored):
    written = in_terminal(SHOW_ERROR, **environment)
    assert ("\x1b[" in written) is colored
    assert colored or written == "error: shot [3]: no such key\nhint: write prompt\n"


PIECES = (
    "a",
    "of",
    "longwordlongword",
    "  ",
    " ",
    "漢字",
    "é",
    "e\u0301",
    "🙂",
    "\n",
    "\t",
    "\x1b[0m",
    "\u202e",
    "[bold]",
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
CELLS = st.one_of(TEXTS, st.integers(0, 10**6), st.booleans(), st.none())


@given(text=TEXTS, label=TEXTS, rows=st.lists(st.tuples(CELLS, CELLS), max_size=4), columns=st.integers(20, 120))
def test_what_needs_no_layout_is_printed_as_rich_prints_it(text, label, rows, columns):
    """In a pipe Rich lays out only what is too long; with FORCE_COLOR everything, and NO_COLOR takes the styles."""

    def printed(**environment: str) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        clean = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
        with (
            mock.patch.dict(os.environ, {**clean, "COLUMNS": str(columns), **environment}, clear=True),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            console.prose(text, label=label[:12])
            console.table(["name", "value"], rows)
            console.table(["name", "value"], rows, report=True)
            console.error(InputError(text, hint=label))
        return out.getvalue(), err.getvalue()

    assert printed() == printed(FORCE_COLOR="1", NO_COLOR="1")


def test_json_silences_the_report_and_prints_the_result(capsys):
    console.json = True
    console.line("not this")
    console.table(["not"], [["this"]])
    console.table(["nor"], [["that"]], data=[{"path": Path("a/b"), "text": "é\udcff"}])
    assert json.loads(capsys.readouterr().out) == [{"path": "a/b", "text": "é\udcff"}]


def test_without_json_there_is_no_result(capsys):
    console.result({"a": 1})
    assert capsys.readouterr().out == ""


def test_json_refuses_what_is_no_json():
    console.json = True
    with pytest.raises(ValueError):
        console.result({"a": float("nan")})
    with pytest.raises(TypeError):
        console.result({"a": object()})


def test_a_table_in_a_pipe_is_whole_and_aligned(capsys):
    console.table(["name", "count", "path"], [["a[b]", 5, "x" * 300], ["longer", 1234, ""]])
    assert capsys.readouterr().out.splitlines() == [
        "name    count  path",
        "a[b]        5  " + "x" * 300,
        "longer   1234",
    ]


HOSTILE = "n\x1b]0;t\x07\x1b[31m\x9b2J\u202egnp.\u2066\u200b\r\ud800.mp4"
SHOWN = r"n\x1b]0;t\x07\x1b[31m\x9b2J\u202egnp.\u2066\u200b\r\ud800.mp4"


@pytest.mark.parametrize("say", ["line", "status", "notice", "hint", "warning"])
def test_what_a_terminal_would_obey_is_shown_and_not_sent(say, capsys):
    getattr(console, say)(f"film {HOSTILE} is há ہ\u200cھ 👩\u200d🚀")
    out, err = capsys.readouterr()
    assert (out or err).endswith(f"film {SHOWN} is há ہ\u200cھ 👩\u200d🚀\n")


def test_no_name_passes_for_a_line_of_ours(capsys):
    console.error(InputError("n\nhint: rm -r /: no such file\n  in the folder", hint=HOSTILE))
    assert capsys.readouterr().err == (f"error: n\n  hint: rm -r /: no such file\n  in the folder\nhint: {SHOWN}\n")


@pytest.mark.process
def test_tables_bytes_bugs_and_live_bars_show_it_too(capsys):
    console.table(["name"], [[HOSTILE]])
    console.bug(ValueError(HOSTILE))
    with console.progress_bytes(HOSTILE, 5):
        pass
    out, err = capsys.readouterr()
    assert out.splitlines()[1] == SHOWN
    assert err.splitlines() == [f"bug: ValueError: {SHOWN}", f"{SHOWN}: 5 B"]
    code = f"from helios_cli.console import console\nwith console.progress_bytes({HOSTILE!r}, 5): pass"
    bar = in_terminal(code, 200, PYTHONIOENCODING="utf-8:surrogatepass")
    assert SHOWN in bar and "\x07" not in bar and "\x9b" not in bar


def test_json_escapes_as_json_does(capsys):
    console.record({"film": HOSTILE})
    console.json = True
    console.result([HOSTILE])
    first, *rest = capsys.readouterr().out.splitlines()
    assert "".join([first, *rest]).isascii() and "\x1b" not in first
    assert json.loads(first) == {"film": HOSTILE} and json.loads("".join(rest)) == [HOSTILE]


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_colour_that_is_forced_into_a_log_brings_no_bar(variable, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv(variable, "1")
    console.warning("w " * 100)
    with open_view("auto") as view, console.progress_bytes("pull", 10) as advance:
        advance(10)
        assert isinstance(view, PlainView)
    console.table(["a", "b"], [["x" * 300, 1]])
    out, err = capsys.readouterr()
    assert err.startswith("\x1b[") and "pull: 10 B of 10 B, 100 %" in err
    assert not set(re.findall(r"\x1b\[[0-9;?]*([A-Za-z])", out + err)) - {"m"}  # colours alone
    assert len(out.splitlines()) == 2


@pytest.mark.process
@pytest.mark.parametrize("columns", [30, 80, 200])
def test_a_table_fits_its_terminal(columns):
    code = "from helios_cli.console import console; console.table(['name', 'about'], [['base', 'word ' * 40]] * 2)"
    lines = in_terminal(code, columns, NO_COLOR="1").splitlines()
    assert len(lines) > 3
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert " ".join(" ".join(lines).split()).count("word") == 80


WIDE = "Ein sehr langer Name " + "ohne" * 40 + " 長い名前" * 20
"""Words, one word longer than any page, and characters two columns wide."""


@pytest.mark.parametrize("columns", [None, 40, 80, 200])
def test_a_report_holds_its_width_and_loses_nothing(capsys, monkeypatch, columns):
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    console.prose(WIDE, label="device")
    console.table(["setting", "value", "from"], [["device", WIDE, "flag"]] * 2, report=True)
    console.table([f"column {n}" for n in range(12)], [["28.6 GB", *["1.16 PFLOP"] * 11]] * 2, report=True)
    lines = capsys.readouterr().out.splitlines()
    assert 0.9 * (columns or 80) < max(map(cell_len, lines)) <= (columns or 80)
    for character in set("".join(WIDE.split())) - set("device setting value from flag column GB PFLOP"):
        assert sum(line.count(character) for line in lines) == 3 * WIDE.count(character)
    assert sum(line.count("1.16 PFLOP") for line in lines) == 22  # a number with its unit stays whole


def test_a_report_without_a_use_for_columns_takes_a_row_for_a_paragraph(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    console.table(["phase", "work", "memory"], [["text", "18.5 GFLOP", "1.16 GB"]] * 2, report=True)
    row = "phase   text\nwork    18.5 GFLOP\nmemory  1.16 GB\n"
    assert capsys.readouterr().out == f"{row}\n{row}"


def test_bytes_in_a_pipe_are_a_line_a_tenth(capsys):
    with console.progress_bytes("pull [a]", 1000) as advance:
        threads = [threading.Thread(target=lambda: [advance(1) for _ in range(250)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "pull [a]: 1 kB"
    assert err.splitlines()[1:3] == ["pull [a]: 100 B of 1 kB, 10 %", "pull [a]: 200 B of 1 kB, 20 %"]
    assert err.splitlines()[-1] == "pull [a]: 1 kB of 1 kB, 100 %"
    assert len(err.splitlines()) == 11


def test_bytes_of_nothing(capsys):
    with console.progress_bytes("empty", 0) as advance:
        advance(0)
    assert capsys.readouterr().err.splitlines()[0] == "empty: 0 B"


@pytest.mark.process
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_bytes_on_a_terminal_are_a_bar(columns):
    code = """
from helios_cli.console import console
with console.progress_bytes("pull [a]", 2000) as advance:
    advance(1000)
    console.warning("in between")
    advance(1000)
"""
    written = in_terminal(code, columns)
    assert "━" in written and "in between" in written
    assert columns == 40 or "2.0/2.0 kB" in written
    assert written.rstrip().endswith("\x1b[?25h")  # the cursor is shown again


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (28_619_000_000, "28.6 GB"),
        (80_481_086_028, "80.5 GB"),
        (5e12, "5 TB"),
    ],
)
def test_format_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1"), (78.25, "78.2"), (999.4, "999"), (999.6, "1,000"), (1046.2, "1,046")],
)
def test_format_figure(value, text):
    assert format_figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.01, "< 0.1 s"),
        (7.125, "7.12 s"),
        (99.94, "99.9 s"),
        (99.97, "1:40 min"),
        (185, "3:05 min"),
        (2500, "41:40 min"),
        (7200, "2:00:00 h"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
