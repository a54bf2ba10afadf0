"""Compares two films frame by frame: PSNR, SSIM and VMAF of each chunk and of the whole.

Both are compared as 8-bit RGB in full size. That is what a viewer is shown, and the one form that every film has: a
lossless .mkv and PNG pictures hold RGB, while an .mp4 holds luma, and colours at half the resolution, which become RGB
by the matrix that the file names. So what an .mp4 loses counts as difference when it is compared with an .mkv.
"""

from __future__ import annotations

import math
import os
import shlex
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np

from helios_cli.check import likeness
from helios_cli.check.comparison import ChunkComparison, Comparison, Likeness, WorstFrame, decibels, fraction
from helios_cli.check.footage import PictureFolder, VideoFile, open_footage
from helios_cli.check.layout import Span, grid, read_sidecar
from helios_cli.check.report import Finding, damage, runs
from helios_cli.check.vmaf import Vmaf, scorable, scoring
from helios_cli.errors import InputError
from helios_cli.film import reading
from helios_cli.units import FRAMES_PER_CHUNK, counted

MAX_WORST = 6
"""Frames that are shown, each the worst of its chunk."""

RATE_TOLERANCE = 0.005
"""Rates are known to two decimals."""

Footage = VideoFile | PictureFolder


@dataclass(frozen=True)
class Limits:
    """The least PSNR in decibels and SSIM of every chunk; with `equal` no frame may differ. InputError for others."""

    psnr: float | None = None
    ssim: float | None = None
    equal: bool = False

    def __post_init__(self) -> None:
        if self.psnr is not None and not 0 <= self.psnr < math.inf:  # NaN fails too
            raise InputError(f"--psnr {self.psnr:g}: must be a number of decibels, from 0", hint="write --psnr 40")
        if self.ssim is not None and not 0 <= self.ssim <= 1:
            raise InputError(f"--ssim {self.ssim:g}: must be from 0 to 1", hint="write --ssim 0.95")


@dataclass(frozen=True)
class _Frames:
    """The likeness of every pair of frames: mean squared error, SSIM, VMAF or None, and the largest difference."""

    squared: np.ndarray
    ssim: np.ndarray
    vmaf: np.ndarray | None
    largest: np.ndarray

    def likeness(self, begin: int, end: int) -> Likeness:
        part = slice(begin, end)
        ssim = float(self.ssim[part].mean())
        return Likeness(
            psnr=likeness.psnr(float(self.squared[part].mean())),
            ssim=None if math.isnan(ssim) else ssim,
            vmaf=None if self.vmaf is None else float(self.vmaf[part].mean()),
            largest=int(self.largest[part].max()),
            equal_frames=int((self.squared[part] == 0).sum()),
        )


def compare(
    film: str | os.PathLike,
    against: str | os.PathLike,
    *,
    limits: Limits = Limits(),
    chunk_frames: int | None = None,
) -> Comparison:
    """Compare `film` with the reference `against`; each is a video file or a folder of PNG pictures.

    Without `chunk_frames`, chunks are those of a sidecar of either for as many frames, else of 33. Each film is decoded
    once, a frame at a time. InputError if one cannot be read, or the films differ in size, length or rate.
    """
    one, other = open_footage(film), open_footage(against)
    fps = _common_rate(one, other)
    frames, (width, height) = _measured(one, other)
    spans = _spans((one, other), chunk_frames, len(frames.squared))
    chunks = tuple(_chunk(frames, index, span) for index, span in enumerate(spans))
    notices = tuple(_notices(one, other, scored=frames.vmaf is not None))
    damaged = [
        damage(f"ffmpeg reports faults in {footage.path}: {footage.damage}", len(chunks), len(frames.squared) / fps)
        for footage in (one, other)
        if footage.damage
    ]
    return Comparison(
        film=os.fspath(film),
        against=os.fspath(against),
        width=width,
        height=height,
        fps=fps,
        num_frames=len(frames.squared),
        whole=frames.likeness(0, len(frames.squared)),
        chunks=chunks,
        worst=_worst(frames, chunks),
        findings=(*_findings(chunks, limits, fps), *damaged),
        notices=notices,
    )


def _common_rate(one: Footage, other: Footage) -> float:
    """Return the rate of both. A folder of pictures has one only in its sidecar, else it takes the other's."""
    known = [footage for footage in (one, other) if footage.knows_rate]
    if len(known) == 2 and abs(one.fps - other.fps) > RATE_TOLERANCE:
        raise InputError(
            f"{one.path} has {one.fps:.5g} frames a second, {other.path} has {other.fps:.5g}: "
            "frame by frame they show different moments",
            hint="render both with the same --fps; if the frames are the same, write those of one film out as "
            "pictures, which have no rate, and compare the folder: "
            "mkdir frames && ffmpeg -i FILM -fps_mode passthrough frames/%06d.png",
        )
    return (known or [one])[0].fps


def _measured(one: Footage, other: Footage) -> tuple[_Frames, tuple[int, int]]:
    squared, ssim, largest = array("d"), array("d"), array("B")
    size = (0, 0)
    with ExitStack() as stack:
        vmaf: Vmaf | None = None
        for first, second in stack.enter_context(closing(pairs(one, other))):
            if not squared:
                size = first.shape[1], first.shape[0]
                vmaf = stack.enter_context(scoring(*size)) if scorable(*size) else None
            if vmaf:
                vmaf.write(first, second)
            if np.array_equal(first, second):
                squared.append(0.0)
                ssim.append(1.0)
                largest.append(0)
                continue
            squared.append(likeness.squared_error(first, second))
            ssim.append(likeness.ssim(first, second))
            largest.append(likeness.largest_difference(first, second))
        scores = vmaf.scores() if vmaf else None
    return _Frames(np.array(squared), np.array(ssim), scores, np.array(largest)), size


def pairs(one: Footage, other: Footage) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yield the pictures of both films, in order and of one size, uint8 [h, w, 3]. InputError where they do not
    match."""
    with closing(one.pictures()) as firsts, closing(other.pictures()) as seconds:
        size: tuple[int, ...] = ()
        for number, (first, second) in enumerate(zip_longest(firsts, seconds)):
            if first is None or second is None:
                shorter, longer, rest = (one, other, seconds) if first is None else (other, one, firsts)
                raise _other_length(shorter, longer, number, number + 1 + sum(1 for _ in rest))
            size = size or first.shape
            for footage, picture, expected in ((one, first, size), (other, second, first.shape)):
                if picture.shape != expected:
                    raise (
                        _other_size(one, other, first.shape, second.shape)
                        if not number
                        else InputError(
                            f"{footage.path} changes its size at frame {number}", hint="compare the parts of one size"
                        )
                    )
            yield first, second


def _other_length(shorter: Footage, longer: Footage, few: int, many: int) -> InputError:
    cut = f"ffmpeg -i {shlex.quote(str(longer.path))} -frames:v {few} -c:v ffv1 cut.mkv"
    how = "take the other pictures out of the folder" if isinstance(longer, PictureFolder) else f"cut it: {cut}"
    return InputError(
        f"{shorter.path} has {counted(few, 'frame')}, {longer.path} has {many}: films of one length can be compared",
        hint=f"to compare the first {counted(few, 'frame')} of the longer film, {how}",
    )


def _other_size(one: Footage, other: Footage, first: Sequence[int], second: Sequence[int]) -> InputError:
    sizes = [f"{shape[1]}x{shape[0]}" for shape in (first, second)]
    return InputError(
        f"{one.path} is {sizes[0]}, {other.path} is {sizes[1]}: films of one size can be compared",
        hint="render both with the same --size, or scale one film, with a loss that counts: "
        f"ffmpeg -i FILM -vf scale={first[1]}:{first[0]}:flags=lanczos -c:v ffv1 scaled.mkv",
    )


def _spans(films: Sequence[Footage], chunk_frames: int | None, num_frames: int) -> list[Span]:
    for footage in films if chunk_frames is None else ():
        sidecar = read_sidecar(footage.path)
        if sidecar and sidecar.num_frames == num_frames:
            return list(sidecar.spans)
    length = chunk_frames or FRAMES_PER_CHUNK
    spans = islice(grid(length), math.ceil(num_frames / length))
    return [Span(span.start_frame, min(length, num_frames - span.start_frame), span.cut) for span in spans]


def _chunk(frames: _Frames, index: int, span: Span) -> ChunkComparison:
    begin, end = span.start_frame, span.start_frame + span.num_frames
    worst = begin + int(frames.squared[begin:end].argmax())
    alike = frames.likeness(begin, end)
    return ChunkComparison(index, begin, span.num_frames, alike, worst, likeness.psnr(frames.squared[worst]))


def _worst(frames: _Frames, chunks: Sequence[ChunkComparison]) -> tuple[WorstFrame, ...]:
    """Return the worst frame of each of the worst chunks, from the worst on."""
    ranked = sorted(chunks, key=lambda chunk: -frames.squared[chunk.worst_frame])[:MAX_WORST]
    return tuple(
        WorstFrame(chunk.worst_frame, chunk.index, frames.likeness(chunk.worst_frame, chunk.worst_frame + 1))
        for chunk in ranked
        if frames.squared[chunk.worst_frame]
    )


def _findings(chunks: Sequence[ChunkComparison], limits: Limits, fps: float) -> Iterator[Finding]:
    if limits.psnr is not None:
        yield from _low(chunks, "psnr", " dB", limits.psnr, fps, decibels)
    if limits.ssim is not None:
        yield from _low(chunks, "ssim", "", limits.ssim, fps, fraction)
    for group in runs(chunks, [limits.equal and not chunk.is_equal for chunk in chunks]):
        differing = sum(chunk.num_frames - chunk.whole.equal_frames for chunk in group)
        largest = max(chunk.whole.largest for chunk in group)
        message = f"{counted(differing, 'frame')} differ, by up to {counted(largest, 'level')}"
        yield _finding("different", group, float(largest), 0.0, fps, message)


def _low(
    chunks: Sequence[ChunkComparison], name: str, unit: str, limit: float, fps: float, shown: Callable[[float], str]
) -> Iterator[Finding]:
    values = [getattr(chunk.whole, name) for chunk in chunks]
    for group in runs(chunks, [value is not None and value < limit for value in values]):
        least = min(values[chunk.index] for chunk in group)
        where = "" if len(group) == 1 else f" in chunk {next(c.index for c in group if values[c.index] == least) + 1}"
        message = f"{name.upper()} is {shown(least)}{unit}{where}, below {limit:g}{unit}"
        yield _finding(f"low {name.upper()}", group, least, limit, fps, message)


def _finding(
    kind: str, group: Sequence[ChunkComparison], value: float, limit: float, fps: float, message: str
) -> Finding:
    first, last = group[0], group[-1]
    begin, end = first.start_frame / fps, last.end_frame / fps
    return Finding(kind, first.index, last.index, begin, end, value, limit, message)


def _notices(one: Footage, other: Footage, *, scored: bool) -> Iterator[str]:
    untagged = [footage.path for footage in (one, other) if _lacks_matrix(footage)]
    if len(untagged) == 1:
        yield (
            f"{untagged[0]} does not say which matrix its colours were coded with: BT.601 is assumed, as ffmpeg does. "
            "If it was BT.709, all its colours count as different"
        )
    if not scored:
        yield "no VMAF: this ffmpeg has no libvmaf with a built-in model, or the frames are too small for it"


def _lacks_matrix(footage: Footage) -> bool:
    if isinstance(footage, PictureFolder):
        return False
    info = reading.probe(footage.path)
    return info.pix_fmt.startswith(("yuv", "nv", "p0")) and info.matrix in (None, "unknown")
