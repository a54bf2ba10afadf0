"""The parts that every report page is made of: one HTML file that loads nothing, for light and for dark screens."""

from __future__ import annotations

import base64
import os
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from helios_cli.check import plot
from helios_cli.check.report import Checked, Finding, clock_time
from helios_cli.errors import InputError
from helios_cli.files import obstacle
from helios_cli.units import counted

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1c2228; --soft: #5b6670; --rule: #dde1e6;
  --data: #1f66b0; --faint: #8a949e; --bad: #b3261e; --good: #1b7a43; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --ink: #e6e9ec; --soft: #a0a9b2;
  --rule: #343a41; --data: #6db1f2; --faint: #8a949e; --bad: #ff8a80; --good: #6fcf97; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1rem 4rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
header, section, details { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 1rem 1.2rem; margin-bottom: 1rem; }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.number, th.number { text-align: right; } td:nth-child(-n+2) { white-space: nowrap; }
summary { cursor: pointer; font-weight: 600; } details table { margin-top: .8rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: .7rem; }
figure { margin: 0; } .sheet img { display: block; width: 100%; border-radius: 4px; border: 2px solid transparent; }
.sheet .bad img { border-color: var(--bad); } .sheet figcaption { font-size: .78rem; }
.plot { margin-bottom: .7rem; } svg { display: block; width: 100%; height: auto; }
.swatch { display: inline-block; width: 2.6rem; height: 1rem; border-radius: 3px; border: 1px solid var(--rule);
  vertical-align: -2px; }
"""


def check_report_path(path: Path) -> None:
    """Check before the work that a page can be written to `path`. InputError if it cannot."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path}: the report is an HTML page", hint=f"write --report {shlex.quote(path.stem)}.html")
    if reason := obstacle(path):
        hint = "name a file in a folder that exists and that you may write to"
        raise InputError(f"the report cannot be written to {path}: {reason}", hint=hint)


def write(page: str, path: Path) -> None:
    """Write the text of a page to `path`, replacing a file there. InputError if it cannot be written."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        hint = "name another place with --report"
        raise InputError(f"the report cannot be written to {path}: {error.strerror}", hint=hint) from error


def document(title: str, body: Iterable[str]) -> str:
    """Return a page with the parts `body` below each other, without those that are empty; all are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{plot.STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def header(title: str, verdict: str, kind: str, checked: Checked, more: str) -> str:
    """Return the head of a page: the verdict, "good", "bad" or neither by its `kind`, facts and notices."""
    facts = (
        f"{checked.width}x{checked.height}, {checked.fps:.5g} frames per second, {checked.length}, "
        f"{counted(len(checked.chunks), 'chunk')}{more}"
    )
    notices = "".join(f"<p>{text(notice)}</p>" for notice in checked.notices)
    verdict = f'<p class="verdict {kind}">{verdict}</p>'
    return f'<header><h1>{title}</h1>{verdict}<p class="soft">{facts}</p>{notices}</header>'


def findings(found: Sequence[Finding]) -> str:
    """Return a section with all findings, or nothing."""
    rows = [[one.kind, one.chunks, clock_time(one.start_seconds), one.message] for one in found]
    return f"<section><h2>Findings</h2>{table(['kind', 'where', 'from', 'what'], rows)}</section>" if rows else ""


def picture(jpeg: bytes, caption: str, alt: str = "", kind: str = "") -> str:
    """Return a picture over its caption; `alt` describes it, if the caption does not."""
    data = base64.b64encode(jpeg).decode()
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{alt or caption}">'
    marked = f' class="{kind}"' if kind else ""
    return f"<figure{marked}>{image}<figcaption>{caption}</figcaption></figure>"


def over_time(series: plot.Series, seconds: float, title: str, meaning: str) -> str:
    """Return the plot of values of a film of so many seconds, under its title and meaning."""
    caption = f"<figcaption><b>{title}</b>: {meaning}</figcaption>"
    return f'<figure class="plot">{caption}{plot.svg(series, seconds, f"{title} over time")}</figure>'


def file_name(film: str) -> str:
    """Return the last part of a film's path as HTML."""
    return text(os.path.basename(os.path.abspath(film)))


def text(value: object) -> str:
    """Escape text for HTML; bytes of a file's name that are not UTF-8 become replacement characters."""
    return escape(os.fsencode(str(value)).decode(errors="replace"))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0, html: bool = False) -> str:
    """Return a table whose last `numbers` columns are numbers. With `html` the cells are HTML already."""
    kinds = [""] * (len(columns) - numbers) + [' class="number"'] * numbers

    def line(tag: str, cells: Iterable[object]) -> str:
        parts = (f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(line("td", row if html else map(text, row)) for row in rows)
    return f'<div class="scroll"><table>{line("th", columns)}{body}</table></div>'
