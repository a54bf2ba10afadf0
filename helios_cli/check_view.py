"""Shows what `helios check` found in a film, in several, and in one against another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from helios_cli.check.comparison import COMPARED_AS, ChunkComparison, Comparison, decibels, fraction, score
from helios_cli.check.examine import FilmReports
from helios_cli.check.report import Checked, ChunkReport, Report, Summary, chunks_with, clock_time, number
from helios_cli.check.summary import COLUMNS as SUMMARY_COLUMNS
from helios_cli.check.summary import rows as summary_rows
from helios_cli.console import console
from helios_cli.units import counted

MAX_ROWS = 40
"""Chunks of a longer film are shown only if they have findings, or are the worst."""

MEASURES = {"brightness": 1, "saturation": 1, "blur": 2, "motion": 1, "flicker": 1}
"""Columns of numbers, with their decimals."""

COLUMNS = ("chunk", "   time", "bright", "satur", "blur", "motion", "flicker", "   Hz", " jump", "found")
COMPARED_COLUMNS = ("chunk", "   time", "  PSNR", "  SSIM", " VMAF", "equal", " worst", " at dB", "found")


def show(report: Report) -> None:
    """Print the report of a film: chunks, the whole film, findings and the verdict."""
    found = chunks_with(report.findings)
    shown = [chunk for chunk in report.chunks if len(report.chunks) <= MAX_ROWS or chunk.index in found]
    rows = {chunk.index: _cells(chunk) for chunk in shown[:MAX_ROWS]}
    medians = _medians(report.chunks) if len(report.chunks) > MAX_ROWS else None
    _show_chunks(report, COLUMNS, rows, medians)
    if len(rows) < len(report.chunks):
        console.prose(f"{len(rows)} of {len(report.chunks)} chunks are shown; --json and --report have all")
    _show_summary(report.summary)
    console.line()
    _show_findings(report)
    kinds = ", ".join(dict.fromkeys(finding.kind for finding in report.findings))
    verdict = f"{counted(len(report.findings), 'finding')} ({kinds})" if kinds else "nothing found"
    console.prose(f"{verdict} in {counted(len(report.chunks), 'chunk')}, {report.length}")


def show_films(films: FilmReports) -> None:
    """Print a row for each film, and the averages."""
    rows = [
        [report.film, str(report.num_frames), ", ".join(dict.fromkeys(one.kind for one in report.findings))]
        for report in films.reports
    ]
    console.table(("film", "frames", "found"), rows, report=True)
    if films.reports:
        _show_summary(films.summary)
        console.prose(f"averages over {counted(len(films.reports), 'film')}, each counted once")


def show_comparison(comparison: Comparison) -> None:
    """Print the worst chunks of a film against another, findings and the verdict."""
    worst = sorted(comparison.chunks, key=lambda one: float("inf") if one.whole.psnr is None else one.whole.psnr)
    shown = sorted(worst[:MAX_ROWS], key=lambda one: one.index)
    _show_chunks(comparison, COMPARED_COLUMNS, {chunk.index: _compared_cells(chunk) for chunk in shown})
    if len(comparison.chunks) > MAX_ROWS:
        count = len(comparison.chunks)
        console.prose(f"the worst {MAX_ROWS} of {count} chunks are shown; --json and --report have all")
    console.line()
    _show_findings(comparison)
    console.prose(_verdict(comparison))


def _show_chunks(
    checked: Checked, columns: Sequence[str], rows: dict[int, list[str]], last: list[str] | None = None
) -> None:
    """Print the notices, and rows of numbers by the index of their chunk, with its time and findings; `last` is a row
    below them."""
    for notice in checked.notices:
        console.notice(notice)
    found, lines = chunks_with(checked.findings), []
    for index, cells in rows.items():
        start = clock_time(checked.chunks[index].start_frame / checked.fps)
        lines.append(([str(index + 1), start, *cells], ", ".join(dict.fromkeys(found.get(index, ())))))
    lines += [(last, "")] if last else []
    aligned = [
        [*(cell.rjust(len(column)) for cell, column in zip(cells, columns, strict=False)), kinds]
        for cells, kinds in lines
    ]
    console.table(columns, aligned, report=True)


def _show_summary(summary: Sequence[Summary]) -> None:
    console.line()
    console.table(SUMMARY_COLUMNS, summary_rows(summary), report=True)


def _show_findings(checked: Checked) -> None:
    for finding in checked.findings:
        console.prose(str(finding))


def _cells(chunk: ChunkReport) -> list[str]:
    numbers = [number(getattr(chunk, name), digits) for name, digits in MEASURES.items()]
    return [*numbers, number(chunk.flicker_hz, 2), "cut" if chunk.cut and chunk.index else number(chunk.jump)]


def _medians(chunks: Sequence[ChunkReport]) -> list[str]:
    medians = [
        number(statistics.median(getattr(chunk, name) or 0.0 for chunk in chunks), digits)
        for name, digits in MEASURES.items()
    ]
    return ["median", "", *medians, "", number(statistics.median(chunk.jump or 0.0 for chunk in chunks[1:]))]


def _compared_cells(chunk: ChunkComparison) -> list[str]:
    whole = chunk.whole
    worst = ["", ""] if chunk.is_equal else [str(chunk.worst_frame), decibels(chunk.worst_psnr)]
    return [decibels(whole.psnr), fraction(whole.ssim), score(whole.vmaf), str(whole.equal_frames), *worst]


def _verdict(comparison: Comparison) -> str:
    whole = comparison.whole
    if comparison.is_equal:
        return f"the films are equal: every pixel in {comparison.length}, as {COMPARED_AS}"
    equal = f"{whole.equal_frames} of {counted(comparison.num_frames, 'frame')} are equal"
    return f"{whole}; {equal}; largest difference {counted(whole.largest, 'level')} of {COMPARED_AS}"
