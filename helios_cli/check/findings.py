"""Turns measures into findings: each rule looks for one fault, by the limits of `limits`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from helios_cli.check import limits
from helios_cli.check.flicker import CYCLES, Flicker, periodic
from helios_cli.check.limits import Limit
from helios_cli.check.measure import LOOK, Measures
from helios_cli.check.report import ChunkReport, Drift, Finding, Look, runs
from helios_cli.units import counted

END_SHARE = 0.15
"""Share of a take's frames at its beginning, and at its end, between which drift is measured."""

SLOW_SECONDS = 6
"""Length of the stretch in which a change of brightness is looked for that is too slow for one chunk."""

BRIGHTNESS, CONTRAST = LOOK.index("brightness"), LOOK.index("contrast")

Chunks = Sequence[ChunkReport]


def chunk_reports(measures: Measures, fps: float) -> tuple[ChunkReport, ...]:
    """Return every chunk in numbers."""
    reports = []
    before = 0.0
    unevenness = _unevenness(measures)
    for index, span in enumerate(measures.spans):
        end = span.start_frame + span.num_frames
        steps = measures.steps[span.start_frame + 1 : end]
        median = float(np.median(steps)) if len(steps) else 0.0
        usual = max(before, median)
        periodic = _flicker_of(measures, index, fps)
        report = ChunkReport(
            index=index,
            start_frame=span.start_frame,
            num_frames=span.num_frames,
            cut=span.cut,
            **means(measures, span.start_frame, end),
            motion=float(steps.mean()) if len(steps) else 0.0,
            flicker=alternation(measures.looks[span.start_frame : end, BRIGHTNESS]),
            flicker_hz=periodic.hz if periodic else None,
            flicker_swing=periodic.swing if periodic else None,
            jump=float(measures.steps[span.start_frame]) if index else None,
            usual_step=usual if index else None,
            jump_limit=_least_jump(usual, unevenness) if index else None,
            from_start=measures.from_start[index],
        )
        reports.append(report)
        before = median
    return tuple(reports)


def means(measures: Measures, begin: int, end: int) -> dict[str, Any]:
    """Return the fields of a Look for the frames from `begin` to before `end`."""
    looks = measures.looks[begin:end].mean(axis=0, dtype=np.float64).tolist()
    starts = np.array([span.start_frame for span in measures.spans])
    within = ~np.isin(np.arange(begin, end), starts)  # across a border the change is that of the seam
    si, ti, blur, entropy = measures.details[begin:end].T
    length, signed = measures.motions[begin:end].T
    columns = {"si": si, "ti": ti[within], "blur": blur, "entropy": entropy}
    columns |= {"motion_length": length[within], "motion_signed": signed[within]}
    return dict(zip(LOOK, looks, strict=True)) | {name: mean(values) for name, values in columns.items()}


def mean(values: np.ndarray) -> float | None:
    """Average the values that are numbers; None if there are none."""
    there = values[~np.isnan(values)]
    return float(there.mean(dtype=np.float64)) if len(there) else None


def alternation(brightness: np.ndarray) -> float:
    """Return the median distance of a frame's brightness from the mean of its neighbours'; see limits.FLICKER."""
    if len(brightness) < 3:
        return 0.0
    return float(np.median(np.abs(brightness[1:-1] - (brightness[:-2] + brightness[2:]) / 2)))


def _flicker_of(measures: Measures, index: int, fps: float) -> Flicker | None:
    """Return the periodic change of a chunk's brightness: of the chunk itself, or, if it is too slow for that, of the
    seconds around it within its take."""
    brightness, span = measures.looks[:, BRIGHTNESS].astype(np.float64), measures.spans[index]
    begin, end = span.start_frame, span.start_frame + span.num_frames
    within = periodic(brightness[begin:end], fps)
    if within:
        return within
    cuts = [one.start_frame for one in measures.spans if one.cut]
    first = max(start for start in [0, *cuts] if start <= begin)
    last = min(start for start in [*cuts, len(brightness)] if start > begin)
    around = round(SLOW_SECONDS * fps)
    left = min(max(first, (begin + end - around) // 2), max(first, last - around))
    return periodic(brightness[left : min(last, left + around)], fps, below_hz=CYCLES * fps / span.num_frames)


def _unevenness(measures: Measures) -> float:
    """Return the largest factor in this film by which a difference within a chunk exceeds the usual one of its chunk,
    except for one frame in 50, which may be a flash or a cut."""
    ratios = []
    for span in measures.spans:
        steps = measures.steps[span.start_frame + 1 : span.start_frame + span.num_frames]
        if len(steps):
            ratios.append(steps / max(float(np.median(steps)), limits.SEAM_LEVELS.value))
    return max(1.0, float(np.quantile(np.concatenate(ratios), 0.98))) if ratios else 1.0


def _least_jump(usual: float, unevenness: float) -> float:
    """Return the difference across a border from which on it is a jump."""
    return max(limits.SEAM_RATIO.value * unevenness * usual, usual + limits.SEAM_LEVELS.value)


def takes(chunks: Chunks) -> Iterator[Chunks]:
    """Yield the chunks of each take: between two cuts, or all of them."""
    starts = [chunk.index for chunk in chunks if chunk.cut]
    for first, after in zip(starts, [*starts[1:], len(chunks)], strict=True):
        yield chunks[first:after]


def drifts(measures: Measures, chunks: Chunks) -> tuple[Drift, ...]:
    """Compare the two ends of each take of at least two chunks."""
    return tuple(_drift(measures, take) for take in takes(chunks) if len(take) > 1)


def end_frames(num_frames: int) -> int:
    """Return how many frames 15 % of `num_frames` are, at least one."""
    return max(1, int(END_SHARE * num_frames))


def _drift(measures: Measures, take: Chunks) -> Drift:
    begin, end = take[0].start_frame, take[-1].end_frame
    share = end_frames(end - begin)
    first = Look(**means(measures, begin, begin + share))
    last = Look(**means(measures, end - share, end))
    return Drift(
        take[0].index,
        take[-1].index,
        first,
        last,
        brightness=last.brightness - first.brightness,
        color=color_shift(astuple(first), astuple(last)),
        saturation=last.saturation - first.saturation,
        contrast=last.contrast - first.contrast,
        blur=_change(first.blur, last.blur),
        entropy=_change(first.entropy, last.entropy),
    )


def color_shift(first: Sequence[float], last: Sequence[float]) -> float:
    """Return the distance of two looks, whose first columns are those of LOOK, in blue and red difference."""
    before, after = (dict(zip(LOOK, look, strict=False)) for look in (first, last))
    blue, red = (
        (after[name] - after["brightness"] - before[name] + before["brightness"]) / scale
        for name, scale in (("blue", 1.8556), ("red", 1.5748))
    )
    return float(np.hypot(blue, red))


def _change(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None else last - first


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
        limit, share = limits.FLICKER.value, limits.FLICKER_SHARE.value
        alternates = [chunk.flicker > max(limit, share * chunk.motion) for chunk in self.chunks]
        for group in runs(self.chunks, alternates):
            worst = max(group, key=lambda chunk: chunk.flicker)
            rate = f", at {worst.flicker_hz:.2f} Hz" if worst.flicker_hz else ""
            message = f"brightness alternates by {worst.flicker:.1f} levels from frame to frame{rate} (limit {limit:g})"
            yield self._finding("flickering", group[0].start_frame, group[-1].end_frame, worst.flicker, limit, message)
        limit = limits.FLICKER_SWING.value
        swings = [self._swings(chunk) for chunk in self.chunks]
        for group in runs(self.chunks, [a and not b for a, b in zip(swings, alternates, strict=True)]):
            worst = max(group, key=lambda chunk: chunk.flicker_swing or 0.0)
            message = (
                f"brightness rises and falls by {worst.flicker_swing:.1f} levels, at {worst.flicker_hz:.2f} Hz "
                f"(limit {limit:g})"
            )
            begin, end = group[0].start_frame, group[-1].end_frame
            yield self._finding("flickering", begin, end, worst.flicker_swing or 0.0, limit, message)

    def _swings(self, chunk: ChunkReport) -> bool:
        if chunk.flicker_hz is None or chunk.flicker_swing is None:
            return False
        change = 2 * chunk.flicker_swing * chunk.flicker_hz / self.fps
        is_apart = change > limits.FLICKER_SWING_SHARE.value * chunk.motion
        return chunk.flicker_swing > limits.FLICKER_SWING.value and is_apart

    def seam_jumps(self) -> Iterator[Finding]:
        for group in runs(self.chunks, [_jumps(chunk) for chunk in self.chunks]):
            worst = max(group, key=lambda chunk: chunk.jump or 0.0)
            jump, ratio = worst.jump or 0.0, seam_ratio(worst)
            against = f"{ratio:.1f} times the usual {worst.usual_step:.1f}" if ratio else "from a picture at rest"
            where = "its first frame" if len(group) == 1 else f"each of {len(group)} seams, the largest"
            message = f"jumps at {where} by {jump:.1f} levels, {against}"
            begin, end = group[0].start_frame, group[-1].start_frame + 1
            yield self._finding("seam jump", begin, end, jump, worst.jump_limit or 0.0, message)

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
        for group in runs(take, returned.tolist()):
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
                if value is not None and abs(value) > limit.value:
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
    "blur": limits.DRIFT_BLUR,
    "entropy": limits.DRIFT_ENTROPY,
}


def _drift_message(drift: Drift, name: str, limit: Limit) -> str:
    if name == "color":
        return f"the mean colour shifts by {drift.color:.1f} levels from start to end (limit {limit.value:g})"
    first, last = getattr(drift.first, name), getattr(drift.last, name)
    ends = f"from {first:.{limit.digits}f} at the start to {last:.{limit.digits}f} at the end"
    least = f"(limit {limit.value:g}{' ' * bool(limit.unit)}{limit.unit})"
    if name == "blur":
        return f"the picture {'softens' if last > first else 'sharpens'}: blur goes {ends} {least}"
    return f"{name} {'rises' if last > first else 'falls'} {ends} {least}"


def _jumps(chunk: ChunkReport) -> bool:
    return not chunk.cut and (chunk.jump or 0.0) > (chunk.jump_limit or 0.0)


def seam_ratio(chunk: ChunkReport) -> float | None:
    """Return a seam's jump over the usual step; None at the film's start, and where nothing moves."""
    if chunk.jump is None or chunk.usual_step is None or chunk.usual_step < limits.FROZEN_STEP.value:
        return None
    return chunk.jump / chunk.usual_step
