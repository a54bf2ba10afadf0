"""The report of a check as a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helios_cli.check import html, plot
from helios_cli.check.findings import seam_ratio
from helios_cli.check.limits import FLICKER, LIMITS
from helios_cli.check.report import ChunkReport, Drift, Finding, Look, Report, chunk_range, chunks_with, clock_time
from helios_cli.units import counted


def write_page(report: Report, path: Path) -> None:
    """Write the report to `path`, replacing a file there. InputError if it cannot be written."""
    html.write(page(report), path)


def page(report: Report) -> str:
    """Return the report as HTML text."""
    name = html.file_name(report.film)
    body = [
        _header(report, name),
        findings_table(report.findings),
        _sheet(report),
        _plots(report),
        _drifts(report.drifts),
        _chunks(report.chunks),
        _limits(),
    ]
    return html.document(f"{name}: check", body)


def _header(report: Report, name: str) -> str:
    count = len(report.findings)
    verdict = counted(count, "finding") if count else "nothing found"
    facts = (
        f"{report.width}x{report.height}, {report.fps:.5g} frames per second, {counted(report.num_frames, 'frame')}, "
        f"{clock_time(report.seconds)}, {counted(len(report.chunks), 'chunk')}. "
        "Levels are those of 8-bit pictures, 0 to 255."
    )
    notices = "".join(f"<p>{html.text(notice)}</p>" for notice in report.notices)
    verdict = f'<p class="verdict {"bad" if count else "good"}">{verdict}</p>'
    return f'<header><h1>{name}</h1>{verdict}<p class="soft">{facts}</p>{notices}</header>'


def findings_table(findings: Sequence[Finding]) -> str:
    """Return a section with all findings, or nothing."""
    if not findings:
        return ""
    rows = [[one.kind, chunk_range(one), clock_time(one.start_seconds), one.message] for one in findings]
    return f"<section><h2>Findings</h2>{html.table(['kind', 'where', 'from', 'what'], rows)}</section>"


def _sheet(report: Report) -> str:
    marked, figures = chunks_with(report.findings), []
    for thumbnail in report.thumbnails:
        chunk, data = report.chunks[thumbnail.chunk], base64.b64encode(thumbnail.jpeg).decode()
        seconds = (chunk.start_frame + chunk.num_frames // 2) / report.fps
        caption = f"chunk {chunk.index + 1}, {clock_time(seconds)}"
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption>'
        kind = ' class="bad"' if thumbnail.chunk in marked else ""
        figures.append(f"<figure{kind}>{picture}</figure>")
    return f'<section><h2>Contact sheet</h2><div class="sheet">{"".join(figures)}</div></section>'


@dataclass(frozen=True)
class Plot:
    """A plot of the value `name` of every chunk, at its middle or start; chunks with findings of `kind` are marked."""

    title: str
    meaning: str
    name: str
    kind: str = ""
    faint: str = ""
    limit: float | None = None
    from_zero: bool = True
    at_start: bool = False


BORDER = "difference across the border to the chunk before; grey: the usual difference around it"
PLOTS = (
    Plot("Brightness", "mean luma", "brightness", "black", from_zero=False),
    Plot("Saturation", "largest less smallest channel", "saturation", from_zero=False),
    Plot("Contrast", "standard deviation of luma", "contrast", "uniform", from_zero=False),
    Plot("Motion", "difference from frame to frame", "motion", "frozen"),
    Plot("Seams", BORDER, "jump", "seam jump", faint="usual_step", at_start=True),
    Plot("Flicker", "brightness of a frame against its neighbours", "flicker", "flickering", limit=FLICKER.value),
    Plot("Distance from the start", "difference from the take's first chunk", "from_start", "repeating"),
)


def _plots(report: Report) -> str:
    figures = "".join(_plot(report, plotted) for plotted in PLOTS)
    return f"<section><h2>Over time, in levels</h2>{figures}</section>"


def _plot(report: Report, plotted: Plot) -> str:
    chunks, share = report.chunks, 0 if plotted.at_start else 0.5
    series = plot.Series(
        times=[(chunk.start_frame + share * chunk.num_frames) / report.fps for chunk in chunks],
        values=[getattr(chunk, plotted.name) for chunk in chunks],
        faint=[getattr(chunk, plotted.faint) for chunk in chunks] if plotted.faint else (),
        from_zero=plotted.from_zero,
        limit=plotted.limit,
        marked=sorted(chunks_with([finding for finding in report.findings if finding.kind == plotted.kind])),
        cuts=[chunk.start_frame / report.fps for chunk in chunks if chunk.cut and chunk.index],
    )
    caption = f"<figcaption><b>{plotted.title}</b>: {plotted.meaning}</figcaption>"
    picture = plot.svg(series, report.seconds, f"{plotted.title} over time")
    return f'<figure class="plot">{caption}{picture}</figure>'


def _drifts(drifts: Sequence[Drift]) -> str:
    rows = []
    for drift in drifts:
        chunks = f"{drift.first_chunk + 1}-{drift.last_chunk + 1}"
        change = [drift.brightness, drift.saturation, drift.contrast]
        rows.append([chunks, "first 15 %", *_look_cells(drift.first), ""])
        rows.append(["", "last 15 %", *_look_cells(drift.last), ""])
        rows.append(["", "change", "", *(f"{value:+.1f}" for value in change), f"{drift.color:.1f}"])
    if not rows:
        return ""
    columns = ["chunks", "", "mean colour", "brightness", "saturation", "contrast", "colour shift"]
    return f"<section><h2>Drift</h2>{html.table(columns, rows, numbers=4, html=True)}</section>"


def _look_cells(look: Look) -> list[str]:
    color = ", ".join(f"{value:.0f}" for value in (look.red, look.green, look.blue))
    swatch = f'<span class="swatch" style="background: rgb({color})"></span> {color}'
    return [swatch, *(f"{value:.1f}" for value in (look.brightness, look.saturation, look.contrast))]


def _chunks(chunks: Sequence[ChunkReport]) -> str:
    columns = ["chunk", "first frame", "brightness", "saturation", "contrast", "motion", "flicker", "jump"]
    columns += ["times usual", "from start"]
    rows = []
    for chunk in chunks:
        levels = [f"{value:.1f}" for value in (chunk.brightness, chunk.saturation, chunk.contrast)]
        steps = (chunk.motion, chunk.flicker, chunk.jump, seam_ratio(chunk))
        changes = ["" if value is None else f"{value:.2f}" for value in steps]
        rows.append([chunk.index + 1, chunk.start_frame, *levels, *changes, f"{chunk.from_start:.1f}"])
    return f"<details><summary>All chunks</summary>{html.table(columns, rows, numbers=10)}</details>"


def _limits() -> str:
    rows = (
        [name.replace("_", " "), f"{limit.value:g} {limit.unit}", f"{limit.means} {limit.why}"]
        for name, limit in LIMITS.items()
    )
    columns = ["limit", "value", "what it means, and why this value"]
    return f"<details><summary>Limits</summary>{html.table(columns, rows)}</details>"
