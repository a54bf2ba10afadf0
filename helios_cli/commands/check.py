"""`helios check`: measures of a finished film, and what in it is worth a look."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli.check.layout import MAX_CHUNK_FRAMES
from helios_cli.console import JsonFlag, console
from helios_cli.errors import HeliosError, InputError
from helios_cli.units import counted

if TYPE_CHECKING:
    from helios_cli.check.films import FilmReports
    from helios_cli.check.report import ChunkReport, Finding, Report

MAX_ROWS = 40
"""Chunks of a longer film are shown only if they have findings."""

MEASURES = {"brightness": 1, "saturation": 1, "blur": 2, "motion": 1, "flicker": 1}
"""Columns of numbers, with their decimals."""

COLUMNS = ("chunk", "   time", "bright", "satur", "blur", "motion", "flicker", "   Hz", " jump", "found")


def check(
    videos: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO", help="Films, or folders of PNG frames.", show_default=False),
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if anything is found.")] = False,
    report: Annotated[Path | None, typer.Option(help="HTML page to write, with pictures and plots.")] = None,
    chunk_frames: Annotated[
        int | None,
        typer.Option(min=8, max=MAX_CHUNK_FRAMES, help="Frames per chunk. (default: from the film's sidecar, else 33)"),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Film to compare with, frame by frame: PSNR, SSIM and VMAF. Nothing else is checked."),
    ] = None,
    psnr: Annotated[float | None, typer.Option(help="Least PSNR of a chunk in dB, with --against.")] = None,
    ssim: Annotated[float | None, typer.Option(help="Least SSIM of a chunk, with --against.")] = None,
    json: JsonFlag = False,
) -> None:
    """Find black, frozen, flickering, drifting and repeating chunks in a film.

    Also shows sharpness, SI and TI, entropy, colour, motion and flicker, and
    how far the last 15 % of frames have drifted from the first.

    Findings are not errors: the exit code is 0, or 1 with --strict. A file that
    cannot be read ends with 2.

    With several films the measures are averaged over them, as benchmarks do.

    --against compares with another film of the same frames instead. There,
    --strict without a limit allows no difference at all.
    """
    from helios_cli.check.html import check_target
    from helios_cli.check.report import chunk_range

    if report:
        check_target(report)
    if against is None and (psnr is not None or ssim is not None):
        flag = "--ssim" if psnr is None else "--psnr"
        raise InputError(f"{flag} is a limit for a comparison", hint="name the film to compare with: --against OTHER")
    if len(videos) > 1:
        _check_alone(report, against)
        return _examine_films(videos, chunk_frames, strict=strict)
    (video,) = videos
    if against is None:
        findings = _examine(video, report, chunk_frames)
    else:
        findings = _compare(video, against, report, chunk_frames, psnr=psnr, ssim=ssim, strict=strict)
    if strict and findings:
        where = f" ({chunk_range(findings[0])}: {findings[0].message})" if against else ""
        hint = None if report else "add --report report.html to see where"
        raise HeliosError(f"{video}: {counted(len(findings), 'finding')}{where}, but --strict allows none", hint=hint)


def _check_alone(report: Path | None, against: Path | None) -> None:
    for flag, given in (("--report", report), ("--against", against)):
        if given is not None:
            raise InputError(f"{flag} is for one film", hint="check the films one by one: for film in ...")


def _examine_films(videos: list[Path], chunk_frames: int | None, *, strict: bool) -> None:
    from helios_cli.check.films import examine_films

    result = examine_films(videos, chunk_frames=chunk_frames)
    console.result(result.to_dict())
    _show_films(result)
    for _, error in result.failed:
        console.error(error)
    if result.failed:
        raise HeliosError(f"{counted(len(result.failed), 'film')} of {len(videos)} could not be read")
    found = [report for report in result.reports if report.findings]
    if strict and found:
        raise HeliosError(f"{counted(len(found), 'film')} of {len(videos)} with findings, but --strict allows none")


def _examine(video: Path, page: Path | None, chunk_frames: int | None) -> Sequence[Finding]:
    from helios_cli.check.examine import examine
    from helios_cli.check.page import write_page

    result = examine(video, chunk_frames=chunk_frames)
    if page:
        write_page(result, page)
    console.result(result.to_dict())
    for notice in result.notices:
        console.notice(notice)
    _show(result)
    return result.findings


def _compare(
    video: Path,
    against: Path,
    page: Path | None,
    chunk_frames: int | None,
    *,
    psnr: float | None,
    ssim: float | None,
    strict: bool,
) -> Sequence[Finding]:
    from helios_cli.check.compare import Limits, compare
    from helios_cli.check.comparison_page import write_page
    from helios_cli.comparison_view import show

    limits = Limits(psnr, ssim, equal=strict and psnr is None and ssim is None)
    result = compare(video, against, limits=limits, chunk_frames=chunk_frames)
    if page:
        write_page(result, page)
    console.result(result.to_dict())
    show(result)
    return result.findings


def _show_films(result: FilmReports) -> None:
    from helios_cli.check.summary import COLUMNS as SUMMARY_COLUMNS
    from helios_cli.check.summary import rows as summary_rows

    rows = [
        [report.film, str(report.num_frames), ", ".join(dict.fromkeys(one.kind for one in report.findings))]
        for report in result.reports
    ]
    console.table(("film", "frames", "found"), rows, report=True)
    if result.reports:
        console.line()
        console.table(SUMMARY_COLUMNS, summary_rows(result.summary), report=True)
        console.prose(f"averages over {counted(len(result.reports), 'film')}, each counted once")


def _show(report: Report) -> None:
    from helios_cli.check.report import chunk_range, chunks_with, clock_time
    from helios_cli.check.summary import COLUMNS as SUMMARY_COLUMNS
    from helios_cli.check.summary import rows as summary_rows

    found = chunks_with(report.findings)
    shown = [chunk for chunk in report.chunks if len(report.chunks) <= MAX_ROWS or chunk.index in found]
    lines = [_row(chunk, report, found.get(chunk.index, [])) for chunk in shown[:MAX_ROWS]]
    if len(report.chunks) > MAX_ROWS:
        lines.append(_median_row(report))
    console.table(COLUMNS, lines, report=True)
    if len(lines) - 1 < len(report.chunks) > MAX_ROWS:
        console.prose(f"{len(lines) - 1} of {len(report.chunks)} chunks are shown; --json and --report have all")
    console.line()
    console.table(SUMMARY_COLUMNS, summary_rows(report.summary), report=True)
    console.line()
    for finding in report.findings:
        time = f"{clock_time(finding.start_seconds)}-{clock_time(finding.end_seconds)}"
        console.prose(f"{finding.kind}: {chunk_range(finding)}, {time}: {finding.message}")
    kinds = ", ".join(dict.fromkeys(finding.kind for finding in report.findings))
    verdict = f"{counted(len(report.findings), 'finding')} ({kinds})" if kinds else "nothing found"
    length = f"{counted(len(report.chunks), 'chunk')}, {counted(report.num_frames, 'frame')}"
    console.prose(f"{verdict} in {length}, {clock_time(report.seconds)}")


def _row(chunk: ChunkReport, report: Report, found: list[str]) -> list[str]:
    from helios_cli.check.report import clock_time

    jump = "" if chunk.jump is None else "cut" if chunk.cut else f"{chunk.jump:.1f}"
    numbers = [_number(getattr(chunk, name), digits) for name, digits in MEASURES.items()]
    start, hz = clock_time(chunk.start_frame / report.fps), _number(chunk.flicker_hz, 2)
    return [*_aligned([str(chunk.index + 1), start, *numbers, hz, jump]), ", ".join(dict.fromkeys(found))]


def _median_row(report: Report) -> list[str]:
    medians = [
        _number(statistics.median(getattr(chunk, name) or 0.0 for chunk in report.chunks), digits)
        for name, digits in MEASURES.items()
    ]
    jump = statistics.median(chunk.jump or 0.0 for chunk in report.chunks[1:])
    return [*_aligned(["median", "", *medians, "", _number(jump, 1)]), ""]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _aligned(cells: list[str]) -> list[str]:
    """Right-align numbers under their headings."""
    return [cell.rjust(len(column)) for cell, column in zip(cells, COLUMNS, strict=False)]
