"""The report of a comparison as a page, with the worst frames of both films next to each other."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from PIL import Image

from helios_cli.check import html, plot
from helios_cli.check.compare import pairs
from helios_cli.check.comparison import COMPARED_AS, Comparison, WorstFrame, decibels, fraction, score
from helios_cli.check.footage import open_footage
from helios_cli.check.report import chunks_with, clock_time
from helios_cli.units import counted

PICTURE_SIDE = 640
"""Longest side of a picture in the page."""

MAX_GAIN = 64
JPEG_QUALITY = 90

STYLE = (
    "<style>.worst { display: grid; grid-template-columns: repeat(3, 1fr); gap: .7rem; margin: .8rem 0 1.4rem; }"
    " .worst img { display: block; width: 100%; border-radius: 4px; } .worst figcaption { font-size: .78rem; }</style>"
)

MEANING = """Frames are compared one by one, as 8-bit RGB in full size: each film's colours are converted by the matrix
that it names. PSNR comes from the mean squared error over red, green and blue, and of a chunk or film over all its
frames; it is infinite where nothing differs. SSIM is the mean over windows of 8 x 8 pixels, 1 where nothing differs.
VMAF is that of libvmaf's built-in model, for luma; the film to compare with is its reference."""


def page(comparison: Comparison) -> str:
    """Return the report as HTML text. The worst frames are decoded again: InputError if the films have changed."""
    names = html.file_name(comparison.film), html.file_name(comparison.against)
    title = " against ".join(names)
    body = [
        _header(comparison, title),
        html.findings(comparison.findings),
        _worst(comparison, names),
        f"<section><h2>Over time</h2>{''.join(_plots(comparison))}</section>",
        _chunks(comparison),
        f"<details><summary>What the numbers mean</summary><p>{MEANING}</p></details>",
    ]
    return html.document(title, body)


def _header(comparison: Comparison, title: str) -> str:
    count, whole = len(comparison.findings), comparison.whole
    verdict = f"{whole}; {counted(count, 'finding')}" if count else str(whole)
    more = (
        f"; {whole.equal_frames} frames are equal, and the largest difference is {counted(whole.largest, 'level')}, "
        f"in {COMPARED_AS}."
    )
    if comparison.is_equal:
        return html.header(title, "the films are equal", "good", comparison, more)
    return html.header(title, verdict, "bad" if count else "", comparison, more)


@dataclass(frozen=True)
class Pictures:
    """A frame of both films, and their difference times `gain`, as JPEG."""

    film: bytes
    against: bytes
    difference: bytes
    gain: int


def _pictures(comparison: Comparison) -> dict[int, Pictures]:
    """Return the pictures of the worst frames by their number."""
    numbers = {frame.number for frame in comparison.worst}
    films = open_footage(comparison.film), open_footage(comparison.against)
    taken: dict[int, Pictures] = {}
    with closing(pairs(*films)) as both:
        for number, (one, other) in enumerate(both if numbers else ()):
            if number in numbers:
                taken[number] = _side_by_side(one, other)
            if len(taken) == len(numbers):
                break
    return taken


def _side_by_side(one: np.ndarray, other: np.ndarray) -> Pictures:
    difference = np.maximum(one, other) - np.minimum(one, other)
    usual = max(1.0, float(np.quantile(difference, 0.995)) or float(difference.max()))
    gain = min(MAX_GAIN, 2 ** int(math.log2(255 / usual)))
    amplified = (difference.astype(np.uint16) * gain).clip(0, 255).astype(np.uint8)
    return Pictures(_jpeg(one), _jpeg(other), _jpeg(amplified), gain)


def _jpeg(pixels: np.ndarray) -> bytes:
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BOX)
    picture.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _worst(comparison: Comparison, names: tuple[str, str]) -> str:
    if not comparison.worst:
        return ""
    pictures = _pictures(comparison)
    rows = "".join(_row(frame, comparison.fps, pictures[frame.number], names) for frame in comparison.worst)
    return f"<section><h2>Worst frames</h2>{STYLE}{rows}</section>"


def _row(frame: WorstFrame, fps: float, pictures: Pictures, names: tuple[str, str]) -> str:
    captions = (*names, f"difference times {pictures.gain}")
    figures = "".join(
        html.picture(jpeg, caption, f"{caption}, frame {frame.number}")
        for caption, jpeg in zip(captions, (pictures.film, pictures.against, pictures.difference), strict=True)
    )
    where = f"Frame {frame.number}, {clock_time(frame.number / fps)}, chunk {frame.chunk + 1}"
    largest = f"largest difference {counted(frame.likeness.largest, 'level')}"
    return f'<p>{where}: {frame.likeness}, {largest}</p><div class="worst">{figures}</div>'


def _plots(comparison: Comparison) -> Iterator[str]:
    chunks, fps = comparison.chunks, comparison.fps
    plots = (
        ("PSNR", "decibels of each chunk; none where nothing differs", "psnr", 1.0),
        ("SSIM", "of each chunk", "ssim", 0.01),
        ("VMAF", "of each chunk", "vmaf", 1.0),
    )
    for title, meaning, name, least_range in plots:
        values = [getattr(chunk.whole, name) for chunk in chunks]
        if all(value is None for value in values):
            continue
        low = [finding for finding in comparison.findings if finding.kind == f"low {title}"]
        series = plot.Series(
            times=[(chunk.start_frame + chunk.num_frames / 2) / fps for chunk in chunks],
            values=values,
            from_zero=False,
            limit=low[0].limit if low else None,
            marked=sorted(chunks_with(low)),
            least_range=least_range,
        )
        yield html.over_time(series, comparison.seconds, title, meaning)


def _chunks(comparison: Comparison) -> str:
    columns = ["chunk", "first frame", "PSNR, dB", "SSIM", "VMAF", "largest", "equal frames", "worst frame", "its PSNR"]
    rows = []
    for chunk in comparison.chunks:
        whole = chunk.whole
        alike = [decibels(whole.psnr), fraction(whole.ssim), score(whole.vmaf), whole.largest, whole.equal_frames]
        worst = ["", ""] if chunk.is_equal else [chunk.worst_frame, decibels(chunk.worst_psnr)]
        rows.append([chunk.index + 1, chunk.start_frame, *alike, *worst])
    return f"<details><summary>All chunks</summary>{html.table(columns, rows, numbers=9)}</details>"
