"""`helios check`: measures of a finished film, and what in it is worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli.check.layout import MAX_CHUNK_FRAMES
from helios_cli.console import JsonFlag, console
from helios_cli.errors import HeliosError, InputError
from helios_cli.units import counted

if TYPE_CHECKING:
    from helios_cli.check.report import Finding


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
    from helios_cli.check.html import check_report_path

    if report:
        check_report_path(report)
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
        where = f" ({findings[0].chunks}: {findings[0].message})" if against else ""
        hint = None if report else "add --report report.html to see where"
        raise HeliosError(f"{video}: {counted(len(findings), 'finding')}{where}, but --strict allows none", hint=hint)


def _check_alone(report: Path | None, against: Path | None) -> None:
    for flag, given in (("--report", report), ("--against", against)):
        if given is not None:
            raise InputError(f"{flag} is for one film", hint="check the films one by one: for film in ...")


def _examine_films(videos: list[Path], chunk_frames: int | None, *, strict: bool) -> None:
    from helios_cli.check.examine import examine_films
    from helios_cli.check_view import show_films

    result = examine_films(videos, chunk_frames=chunk_frames)
    console.result(result.to_dict())
    show_films(result)
    for _, error in result.failed:
        console.error(error)
    if result.failed:
        raise HeliosError(f"{counted(len(result.failed), 'film')} of {len(videos)} could not be read")
    found = [report for report in result.reports if report.findings]
    if strict and found:
        raise HeliosError(f"{counted(len(found), 'film')} of {len(videos)} with findings, but --strict allows none")


def _examine(video: Path, file: Path | None, chunk_frames: int | None) -> Sequence[Finding]:
    from helios_cli.check import html
    from helios_cli.check.examine import examine
    from helios_cli.check.page import page
    from helios_cli.check_view import show

    result = examine(video, chunk_frames=chunk_frames)
    console.result(result.to_dict())
    show(result)
    if file:
        html.write(page(result), file)
    return result.findings


def _compare(
    video: Path,
    against: Path,
    file: Path | None,
    chunk_frames: int | None,
    *,
    psnr: float | None,
    ssim: float | None,
    strict: bool,
) -> Sequence[Finding]:
    from helios_cli.check import html
    from helios_cli.check.compare import Limits, compare
    from helios_cli.check.comparison_page import page
    from helios_cli.check_view import show_comparison

    limits = Limits(psnr, ssim, equal=strict and psnr is None and ssim is None)
    result = compare(video, against, limits=limits, chunk_frames=chunk_frames)
    console.result(result.to_dict())
    show_comparison(result)
    if file:
        html.write(page(result), file)
    return result.findings
