"""The report of a check as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helios_cli.check import html, plot
from helios_cli.check.findings import seam_ratio
from helios_cli.check.limits import FLICKER, FLICKER_SWING, LIMITS
from helios_cli.check.report import ChunkReport, Drift, Look, Report, Summary, chunks_with, clock_time, number
from helios_cli.check.summary import COLUMNS, rows
from helios_cli.units import counted


def page(report: Report) -> str:
    """Return the report as HTML text."""
    name, count = html.file_name(report.film), len(report.findings)
    verdict, kind = (counted(count, "finding"), "bad") if count else ("nothing found", "good")
    body = [
        html.header(name, verdict, kind, report, ". Levels are those of 8-bit pictures, 0 to 255."),
        html.findings(report.findings),
        _sheet(report),
        _summary(report.summary),
        f"<section><h2>Over time</h2>{''.join(_plot(report, plotted) for plotted in PLOTS)}</section>",
        _drifts(report.drifts),
        _chunks(report.chunks),
        _limits(),
    ]
    return html.document(f"{name}: check", body)


def _sheet(report: Report) -> str:
    marked, figures = chunks_with(report.findings), []
    for thumbnail in report.thumbnails:
        chunk = report.chunks[thumbnail.chunk]
        seconds = (chunk.start_frame + chunk.num_frames // 2) / report.fps
        caption = f"chunk {chunk.index + 1}, {clock_time(seconds)}"
        figures.append(html.picture(thumbnail.jpeg, caption, kind="bad" if thumbnail.chunk in marked else ""))
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
    least_range: float = 4.0


BORDER = "difference across the border to the chunk before; grey: the largest that is no finding in this film"
LENGTH = "mean length of its vectors, in pixels of a 640x384 picture a frame; grey: their signed mean"
SWING = "how far brightness goes from lowest to highest where it changes periodically, in levels"
PLOTS = (
    Plot("Brightness", "mean luma", "brightness", "black", from_zero=False),
    Plot("Saturation", "largest less smallest channel", "saturation", from_zero=False),
    Plot("Contrast", "standard deviation of luma", "contrast", "uniform", from_zero=False),
    Plot("Blur", "from 0, sharp, to 1", "blur", from_zero=False, least_range=0.2),
    Plot("Spatial information", "SI of ITU-T P.910", "si", from_zero=False),
    Plot("Temporal information", "TI of ITU-T P.910", "ti"),
    Plot("Entropy", "of luma, in bits", "entropy", from_zero=False, least_range=1.0),
    Plot("Change", "difference from frame to frame", "motion", "frozen"),
    Plot("Motion", LENGTH, "motion_length", faint="motion_signed", from_zero=False, least_range=1.0),
    Plot("Seams", BORDER, "jump", "seam jump", faint="jump_limit", at_start=True),
    Plot("Flicker", "brightness of a frame against its neighbours", "flicker", "flickering", limit=FLICKER.value),
    Plot("Slower flicker", SWING, "flicker_swing", "flickering", limit=FLICKER_SWING.value),
    Plot("Distance from the start", "difference from the take's first chunk", "from_start", "repeating"),
)


def _plot(report: Report, plotted: Plot) -> str:
    chunks, share = report.chunks, 0 if plotted.at_start else 0.5
    series = plot.Series(
        times=[(chunk.start_frame + share * chunk.num_frames) / report.fps for chunk in chunks],
        values=[getattr(chunk, plotted.name) for chunk in chunks],
        faint=[getattr(chunk, plotted.faint) for chunk in chunks] if plotted.faint else (),
        from_zero=plotted.from_zero,
        least_range=plotted.least_range,
        limit=plotted.limit,
        marked=sorted(chunks_with([finding for finding in report.findings if finding.kind == plotted.kind])),
        cuts=[chunk.start_frame / report.fps for chunk in chunks if chunk.cut and chunk.index],
    )
    return html.over_time(series, report.seconds, plotted.title, plotted.meaning)


def _summary(summary: Sequence[Summary]) -> str:
    note = (
        "Highest is over frames, for flicker over chunks; P.910 calls a film's SI and TI the highest ones. Drift is "
        "HeliosBench's, the distance of the means of the first and the last 15 % of frames, cuts or not. The mean of "
        "signed motion is its motion amplitude as we estimate it: HeliosBench takes other vectors (Farneback's at "
        "640x384), which are shorter in even areas. Its scores by neural networks are not computed."
    )
    table = html.table(COLUMNS, rows(summary), numbers=5)
    return f'<section><h2>The whole film</h2>{table}<p class="soft">{note}</p></section>'


def _drifts(drifts: Sequence[Drift]) -> str:
    lines = []
    for drift in drifts:
        chunks = f"{drift.first_chunk + 1}-{drift.last_chunk + 1}"
        change = [number(value, 1, "+") for value in (drift.brightness, drift.saturation, drift.contrast)]
        change += [number(value, 2, "+") for value in (drift.blur, drift.entropy)]
        lines.append([chunks, "first 15 %", *_look_cells(drift.first), ""])
        lines.append(["", "last 15 %", *_look_cells(drift.last), ""])
        lines.append(["", "change", "", *change, f"{drift.color:.1f}"])
    if not lines:
        return ""
    columns = ["chunks", "", "mean colour", "brightness", "saturation", "contrast", "blur", "entropy"]
    columns += ["colour shift"]
    return f"<section><h2>Drift within takes</h2>{html.table(columns, lines, numbers=6, html=True)}</section>"


def _look_cells(look: Look) -> list[str]:
    color = ", ".join(f"{value:.0f}" for value in (look.red, look.green, look.blue))
    swatch = f'<span class="swatch" style="background: rgb({color})"></span> {color}'
    levels = (look.brightness, look.saturation, look.contrast)
    return [swatch, *map(number, levels), number(look.blur, 2), number(look.entropy, 2)]


def _chunks(chunks: Sequence[ChunkReport]) -> str:
    columns = ["chunk", "first frame", "brightness", "saturation", "contrast", "blur", "SI", "TI", "entropy", "change"]
    columns += ["motion", "signed", "flicker", "Hz", "swing", "jump", "times usual", "from start"]
    lines = []
    for chunk in chunks:
        looks = [number(value) for value in (chunk.brightness, chunk.saturation, chunk.contrast)]
        details = [number(chunk.blur, 2), number(chunk.si), number(chunk.ti), number(chunk.entropy, 2)]
        motion = (chunk.motion, chunk.motion_length, chunk.motion_signed)
        flicker = (chunk.flicker, chunk.flicker_hz, chunk.flicker_swing)
        changes = [*motion, *flicker, chunk.jump, seam_ratio(chunk), chunk.from_start]
        lines.append([chunk.index + 1, chunk.start_frame, *looks, *details, *(number(value, 2) for value in changes)])
    table = html.table(columns, lines, numbers=len(columns))
    return f"<details><summary>All chunks</summary>{table}</details>"


def _limits() -> str:
    rows = (
        [name.replace("_", " "), f"{limit.value:g} {limit.unit}", f"{limit.means} {limit.why}"]
        for name, limit in LIMITS.items()
    )
    columns = ["limit", "value", "what it means, and why this value"]
    return f"<details><summary>Limits</summary>{html.table(columns, rows)}</details>"
