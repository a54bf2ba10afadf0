"""A line over time as inline SVG, coloured by the style sheet of the page around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 900, 132
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22
"""Margins around the plotted area, in units of the view box."""

MAX_POINTS = 450
"""Points of a line: two units each. More values are drawn as a band from smallest to largest around their mean."""

Value = float | None


@dataclass(frozen=True)
class Series:
    """`values` at `times` (seconds); None leaves a gap. `faint`: a second line to compare with.

    The vertical axis begins at 0 if `from_zero`. `limit` draws a line at that value; `marked` are indices of values
    to point out, `cuts` are times of vertical lines.
    """

    times: Sequence[float]
    values: Sequence[Value]
    faint: Sequence[Value] = ()
    from_zero: bool = True
    limit: float | None = None
    marked: Sequence[int] = ()
    cuts: Sequence[float] = ()


def svg(series: Series, seconds: float, label: str) -> str:
    """The plot of `series` over a film of `seconds`; `label` says it to those who cannot see it."""
    low, high, step = _range(series)
    scale = _Scale(seconds, low, high)
    parts = [*_grid(scale, low, high, step, seconds)]
    parts += [_line(scale.x(time), TOP, scale.x(time), HEIGHT - BOTTOM, "cut") for time in series.cuts]
    if series.limit is not None:
        y = scale.y(series.limit)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "limit"))
    if series.faint:
        parts += _curve(scale, series.times, series.faint, "faint")
    parts += _curve(scale, series.times, series.values, "data")
    marked = [(series.times[index], series.values[index]) for index in series.marked]
    parts += [_mark(scale, time, value) for time, value in marked if value is not None]
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "".join([head, *parts, "</svg>"])


class _Scale:
    """From seconds and values to units of the view box."""

    def __init__(self, seconds: float, low: float, high: float) -> None:
        self.seconds, self.low, self.high = seconds, low, high

    def x(self, time: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * time / self.seconds

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)


def _range(series: Series) -> tuple[float, float, float]:
    """Bottom, top and step of the vertical axis: round numbers around all values, at least 4 levels apart."""
    found = [value for value in (*series.values, *series.faint, series.limit) if value is not None]
    low = 0.0 if series.from_zero else min(found, default=0.0)
    high = max(max(found, default=0.0), low + 4)
    step = _round_step((high - low) / 3)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, 20, 50 ... that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _grid(scale: _Scale, low: float, high: float, step: float, seconds: float) -> list[str]:
    parts = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = scale.y(value)
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for time, text in _time_ticks(seconds):
        parts.append(f'<text x="{scale.x(time):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{text}</text>')
    return parts


def _time_ticks(seconds: float) -> list[tuple[float, str]]:
    """Up to eight round times from 0, as `1.5 s`, `0:40` or `1:10:00`."""
    step = next((step for step in (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800) if seconds / step <= 8), None)
    step = step or 3600 * math.ceil(seconds / 8 / 3600)
    times = [number * step for number in range(int(seconds / step) + 1)]
    if seconds < 60:
        return [(time, f"{time:g} s") for time in times]
    return [(time, _clock(int(time))) for time in times]


def _clock(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def _mark(scale: _Scale, time: float, value: float) -> str:
    place = f'cx="{scale.x(time):.1f}" cy="{scale.y(value):.1f}"'
    return f'<circle class="mark" {place} r="3.5"><title>{value:.2f} at {time:.2f} s</title></circle>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _curve(scale: _Scale, times: Sequence[float], values: Sequence[Value], kind: str) -> list[str]:
    """One path for each run of values without a gap; where values are thinned out also the band they lie in."""
    size = math.ceil(len(values) / MAX_POINTS)
    parts: list[str] = []
    run: list[tuple[float, list[float]]] = []
    for begin in range(0, len(values) + size, size):
        group = [value for value in values[begin : begin + size] if value is not None]
        if group:
            middle = times[begin : begin + size]
            run.append((scale.x(sum(middle) / len(middle)), group))
        elif run:
            parts += _run(scale, run, kind, band=size > 1)
            run = []
    return parts


def _run(scale: _Scale, run: list[tuple[float, list[float]]], kind: str, *, band: bool) -> list[str]:
    means = [(x, scale.y(sum(group) / len(group))) for x, group in run]
    if len(means) == 1:  # a path of one point shows nothing
        x, y = means[0]
        return [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>']
    parts = [f'<path class="{kind}" d="{_path(means)}"/>']
    if band:
        edges = [(x, scale.y(max(group))) for x, group in run] + [(x, scale.y(min(group))) for x, group in run[::-1]]
        parts.insert(0, f'<path class="band" d="{_path(edges)}Z"/>')
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
