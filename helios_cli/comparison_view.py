"""Shows what `helios check --against` found: a row for each chunk, the findings, the numbers of the whole."""

from __future__ import annotations

from helios_cli.check.comparison import COMPARED_AS, ChunkComparison, Comparison, decibels, fraction, score
from helios_cli.check.report import chunk_range, chunks_with, clock_time
from helios_cli.console import console
from helios_cli.units import counted

MAX_ROWS = 40
"""The worst chunks of a longer film are shown."""

COLUMNS = ("chunk", "   time", "  PSNR", "  SSIM", " VMAF", "equal", " worst", " at dB", "found")


def show(comparison: Comparison) -> None:
    """Print the report on stdout, notices on stderr."""
    for notice in comparison.notices:
        console.notice(notice)
    found = chunks_with(comparison.findings)
    shown = sorted(comparison.chunks, key=_rank)[:MAX_ROWS]
    rows = [
        _row(chunk, comparison.fps, found.get(chunk.index, [])) for chunk in sorted(shown, key=lambda one: one.index)
    ]
    console.table(COLUMNS, rows, report=True)
    if len(comparison.chunks) > MAX_ROWS:
        count = len(comparison.chunks)
        console.prose(f"the worst {MAX_ROWS} of {count} chunks are shown; --json and --report have all")
    console.line()
    for finding in comparison.findings:
        time = f"{clock_time(finding.start_seconds)}-{clock_time(finding.end_seconds)}"
        console.prose(f"{finding.kind}: {chunk_range(finding)}, {time}: {finding.message}")
    console.prose(_verdict(comparison))


def _rank(chunk: ChunkComparison) -> float:
    return float("inf") if chunk.whole.psnr is None else chunk.whole.psnr


def _row(chunk: ChunkComparison, fps: float, found: list[str]) -> list[str]:
    whole = chunk.whole
    worst = ["", ""] if chunk.is_equal else [str(chunk.worst_frame), decibels(chunk.worst_psnr)]
    start = clock_time(chunk.start_frame / fps)
    numbers = [decibels(whole.psnr), fraction(whole.ssim), score(whole.vmaf), str(whole.equal_frames), *worst]
    cells = [str(chunk.index + 1), start, *numbers]
    aligned = [cell.rjust(len(column)) for cell, column in zip(cells, COLUMNS, strict=False)]
    return [*aligned, ", ".join(dict.fromkeys(found))]


def _verdict(comparison: Comparison) -> str:
    whole, length = comparison.whole, f"{counted(comparison.num_frames, 'frame')}, {clock_time(comparison.seconds)}"
    if comparison.is_equal:
        return f"the films are equal: every pixel in {length}, as {COMPARED_AS}"
    numbers = f"PSNR {decibels(whole.psnr)} dB, SSIM {fraction(whole.ssim)}, VMAF {score(whole.vmaf)}"
    equal = f"{whole.equal_frames} of {counted(comparison.num_frames, 'frame')} are equal"
    return f"{numbers}; {equal}; largest difference {counted(whole.largest, 'level')} of {COMPARED_AS}"
