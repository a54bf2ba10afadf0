"""Turns measures into findings: each rule looks for one fault, by the limits of `limits`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from helios_cli.check import limits
from helios_cli.check.limits import Limit
from helios_cli.check.measure import LOOK, Measures
from helios_cli.check.report import ChunkReport, Drift, Finding, Look
from helios_cli.units import counted

END_SHARE = 0.15
"""Share of a take's frames at its beginning, and at its end, between which drift is measured."""

BRIGHTNESS, CONTRAST = LOOK.index("brightness"), LOOK.index("contrast")

Chunks = Sequence[ChunkReport]


def chunk_reports(measures: Measures) -> tuple[ChunkReport, ...]:
    """Return every chunk in numbers."""
    reports = []
    before = 0.0
    for index, span in enumerate(measures.spans):
        end = span.start_frame + span.num_frames
        looks, steps = measures.looks[span.start_frame : end], measures.steps[span.start_frame + 1 : end]
        median = float(np.median(steps)) if len(steps) else 0.0
        report = ChunkReport(
            index,
            span.start_frame,
            span.num_frames,
            span.cut,
            **_means(looks),
            motion=float(steps.mean()) if len(steps) else 0.0,
            flicker=_flicker(looks[:, BRIGHTNESS]),
            jump=float(measures.steps[span.start_frame]) if index else None,
            usual_step=max(before, median) if index else None,
            from_start=measures.from_start[index],
        )
        reports.append(report)
        before = median
    return tuple(reports)


def _means(looks: np.ndarray) -> dict[str, float]:
    return dict(zip(LOOK, looks.mean(axis=0, dtype=np.float64).tolist(), strict=True))


def _flicker(brightness: np.ndarray) -> float:
    """Return the median distance of a frame's brightness from the mean of its neighbours'; see limits.FLICKER."""
    if len(brightness) < 3:
        return 0.0
    return float(np.median(np.abs(brightness[1:-1] - (brightness[:-2] + brightness[2:]) / 2)))


def takes(chunks: Chunks) -> Iterator[Chunks]:
    """Yield the chunks of each take: between two cuts, or all of them."""
    starts = [chunk.index for chunk in chunks if chunk.cut]
    for first, after in zip(starts, [*starts[1:], len(chunks)], strict=True):
        yield chunks[first:after]


def drifts(measures: Measures, chunks: Chunks) -> tuple[Drift, ...]:
    """Compare the two ends of each take of at least two chunks."""
    return tuple(_drift(measures, take) for take in takes(chunks) if len(take) > 1)


def _drift(measures: Measures, take: Chunks) -> Drift:
    begin, end = take[0].start_frame, take[-1].end_frame
    share = max(1, round(END_SHARE * (end - begin)))
    first = Look(**_means(measures.looks[begin : begin + share]))
    last = Look(**_means(measures.looks[end - share : end]))
    blue = (last.blue - last.brightness - first.blue + first.brightness) / 1.8556
    red = (last.red - last.brightness - first.red + first.brightness) / 1.5748
    return Drift(
        take[0].index,
        take[-1].index,
        first,
        last,
        brightness=last.brightness - first.brightness,
        color=float(np.hypot(blue, red)),
        saturation=last.saturation - first.saturation,
        contrast=last.contrast - first.contrast,
    )


def find(measures: Measures, chunks: Chunks, drifted: Sequence[Drift], fps: float) -> tuple[Finding, ...]:
    """Return all findings, in the film's order."""
    film = _Film(measures, chunks, fps)
    findings = [*film.still(), *film.flickering(), *film.seam_jumps(), *film.repeating(), *film.drifting(drifted)]
    return tuple(sorted(findings, key=lambda finding: (finding.start_seconds, finding.end_seconds)))


class _Film:
    """The rules, for one film."""

    def __init__(self, measures: Measures, chunks: Chunks, fps: float) -> None:
        self.measures, self.chunks, self.fps = measures, chunks, fps
        self.starts = [chunk.start_frame for chunk in chunks]
        self.uniform = measures.looks[:, CONTRAST] < limits.UNIFORM_CONTRAST.value

    def still(self) -> Iterator[Finding]:
        """Find black, uniform and frozen stretches; a frame counts for the first of these only."""
        black = self.uniform & (self.measures.looks[:, BRIGHTNESS] < limits.BLACK_BRIGHTNESS.value)
        repeated = self.measures.steps < limits.FROZEN_STEP.value
        repeated[0] = False
        repeated[1:-1] |= repeated[:-2] & repeated[2:]  # a key frame's pop ends no stretch
        frozen = (repeated | np.append(repeated[1:], False)) & ~self.uniform  # with the first frame of the stretch
        flat = self.uniform & ~black
        yield from self._lasting("black", black, limits.FLAT_SECONDS, "the picture is black")
        yield from self._lasting("uniform", flat, limits.FLAT_SECONDS, "the picture is one flat colour")
        yield from self._lasting("frozen", frozen, limits.FROZEN_SECONDS, "nothing moves")

    def _lasting(self, kind: str, frames: np.ndarray, limit: Limit, words: str) -> Iterator[Finding]:
        edges = np.flatnonzero(np.diff(np.concatenate(([False], frames, [False])))).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            seconds = (end - begin) / self.fps
            if seconds >= limit.value or end - begin == len(frames):
                message = f"{words} for {counted(end - begin, 'frame')} ({seconds:.2f} s)"
                yield self._finding(kind, begin, end, seconds, limit.value, message)

    def flickering(self) -> Iterator[Finding]:
        limit = limits.FLICKER.value
        share = limits.FLICKER_SHARE.value
        for group in _groups(self.chunks, [chunk.flicker > max(limit, share * chunk.motion) for chunk in self.chunks]):
            worst = max(chunk.flicker for chunk in group)
            message = f"brightness alternates by {worst:.1f} levels from frame to frame (limit {limit:g})"
            yield self._finding("flickering", group[0].start_frame, group[-1].end_frame, worst, limit, message)

    def seam_jumps(self) -> Iterator[Finding]:
        for group in _groups(self.chunks, [_jumps(chunk) for chunk in self.chunks]):
            worst = max(group, key=lambda chunk: chunk.jump or 0.0)
            jump, ratio = worst.jump or 0.0, seam_ratio(worst)
            against = f"{ratio:.1f} times the usual {worst.usual_step:.1f}" if ratio else "from a picture at rest"
            where = "its first frame" if len(group) == 1 else f"each of {len(group)} seams, the largest"
            message = f"jumps at {where} by {jump:.1f} levels, {against}"
            begin, end = group[0].start_frame, group[-1].start_frame + 1
            yield self._finding("seam jump", begin, end, jump, _least_jump(worst), message)

    def repeating(self) -> Iterator[Finding]:
        for take in takes(self.chunks):
            if not self.uniform[take[0].start_frame : take[0].end_frame].all():
                yield from self._repetitions(take)

    def _repetitions(self, take: Chunks) -> Iterator[Finding]:
        """Find chunks that are close to the take's first one after others were far from it."""
        distances = np.array([chunk.from_start for chunk in take])
        farthest = np.concatenate(([0.0], np.maximum.accumulate(distances)[:-1]))  # of the chunks before each
        least = limits.REPEAT_RETURN.value * farthest
        returned = (farthest >= limits.REPEAT_DEPARTURE.value) & (distances <= least)
        for group in _groups(take, returned.tolist()):
            place = group[0].index - take[0].index
            nearest = min(chunk.from_start for chunk in group)
            message = (
                f"shows chunk {take[0].index + 1} again: "
                f"{nearest:.1f} levels away from it, and up to {farthest[place]:.1f} in between"
            )
            begin, end = group[0].start_frame, group[-1].end_frame
            yield self._finding("repeating", begin, end, nearest, least[place], message)

    def drifting(self, drifted: Sequence[Drift]) -> Iterator[Finding]:
        for drift in drifted:
            begin, end = self.chunks[drift.first_chunk].start_frame, self.chunks[drift.last_chunk].end_frame
            for name, limit in DRIFT_LIMITS.items():
                value = getattr(drift, name)
                if abs(value) > limit.value:
                    message = _drift_message(drift, name, limit)
                    yield self._finding("drifting", begin, end, value, limit.value, message)

    def _finding(self, kind: str, begin: int, end: int, value: float, limit: float, message: str) -> Finding:
        """Return a finding over the frames from `begin` to before `end`."""
        first, last = (np.searchsorted(self.starts, [begin, end - 1], side="right") - 1).tolist()
        return Finding(kind, first, last, begin / self.fps, end / self.fps, float(value), float(limit), message)


DRIFT_LIMITS = {
    "brightness": limits.DRIFT_BRIGHTNESS,
    "color": limits.DRIFT_COLOR,
    "saturation": limits.DRIFT_SATURATION,
    "contrast": limits.DRIFT_CONTRAST,
}


def _drift_message(drift: Drift, name: str, limit: Limit) -> str:
    if name == "color":
        return f"the mean colour shifts by {drift.color:.1f} levels from start to end (limit {limit.value:g})"
    first, last = getattr(drift.first, name), getattr(drift.last, name)
    verb = "rises" if last > first else "falls"
    return f"{name} {verb} from {first:.1f} at the start to {last:.1f} at the end (limit {limit.value:g} levels)"


def _least_jump(chunk: ChunkReport) -> float:
    """Return the difference across the border before `chunk` from which on it is a jump."""
    usual = chunk.usual_step or 0.0
    return max(limits.SEAM_RATIO.value * usual, usual + limits.SEAM_LEVELS.value)


def _jumps(chunk: ChunkReport) -> bool:
    return not chunk.cut and (chunk.jump or 0.0) > _least_jump(chunk)


def seam_ratio(chunk: ChunkReport) -> float | None:
    """Return a seam's jump over the usual step; None at the film's start, and where nothing moves."""
    if chunk.jump is None or chunk.usual_step is None or chunk.usual_step < limits.FROZEN_STEP.value:
        return None
    return chunk.jump / chunk.usual_step


def _groups(chunks: Chunks, flags: Sequence[bool]) -> Iterator[Chunks]:
    """Yield runs of neighbouring chunks with a true flag."""
    for flag, pairs in groupby(zip(flags, chunks, strict=True), key=lambda pair: pair[0]):
        if flag:
            yield [chunk for _, chunk in pairs]
