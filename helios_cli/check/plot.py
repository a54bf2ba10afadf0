"""Draws line plots as SVG: inline in a page, or as one picture of several plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from helios_cli.check.report import clock_time

WIDTH, HEIGHT = 900, 132
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 22
"""Margins around the plotted area, in units of the view box."""

TITLE_HEIGHT = 22
MAX_POINTS = 450
"""Points of a line: two units each. More values are drawn as a band from smallest to largest around their mean."""

STYLE = """
svg text { font: 11px system-ui, sans-serif; fill: var(--soft, #5b6670); } .grid { stroke: var(--rule, #dde1e6); }
.cut { stroke: var(--faint, #8a949e); stroke-dasharray: 2 3; }
.limit { stroke: var(--bad, #b3261e); stroke-dasharray: 5 4; }
path.data { fill: none; stroke: var(--data, #1f66b0); stroke-width: 1.6; } circle.data { fill: var(--data, #1f66b0); }
path.faint { fill: none; stroke: var(--faint, #8a949e); stroke-width: 1.2; }
circle.faint { fill: var(--faint, #8a949e); } .mark { fill: var(--bad, #b3261e); }
.band { fill: var(--data, #1f66b0); opacity: .25; }
"""
"""The style of a plot; a page may set other colours by variables."""

Value = float | None
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The `values` of a plot at `times`, seconds or, if `is_timed` is false, steps; None leaves a gap.

    `faint` is a second line to compare with, `limit` a horizontal line; `cuts` are times of vertical lines, `marked`
    indices of values to point out. The vertical axis begins at 0 if `from_zero`, and spans at least `least_range`. If
    `may_be_logarithmic`, it is so for positive values over more than a factor of five.
    """

    times: Sequence[float]
    values: Sequence[Value]
    faint: Sequence[Value] = ()
    from_zero: bool = True
    limit: float | None = None
    marked: Sequence[int] = ()
    cuts: Sequence[float] = ()
    is_timed: bool = True
    least_range: float = 4.0
    may_be_logarithmic: bool = False


def picture(plots: Mapping[str, Series]) -> str:
    """Return an SVG file with plots below each other, each under its title."""
    pitch = TITLE_HEIGHT + HEIGHT
    parts = [f"<style>{STYLE}</style>", '<rect width="100%" height="100%" fill="white"/>']
    for number, (title, series) in enumerate(plots.items()):
        place = f'transform="translate(0 {number * pitch})"'
        label = f'<text x="{LEFT}" y="{TITLE_HEIGHT - 6}">{escape(title)}</text>'
        plot = svg(series, max(series.times), escape(title), top=TITLE_HEIGHT)
        parts.append(f"<g {place}>{label}{plot}</g>")
    size = f'width="{WIDTH}" height="{pitch * len(plots)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>\n'


def svg(series: Series, end: float, label: str, *, top: int = 0) -> str:
    """Return the plot of `series` from time 0 to `end`, `top` units down; `label` describes it to screen readers."""
    axis, right, bottom = Axis(series), WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(time: float, value: float) -> Point:
        return LEFT + (right - LEFT) * time / (end or 1), bottom - (bottom - TOP) * axis.height(value)

    parts = []
    for tick in axis.ticks:
        y = place(0, tick)[1]
        parts.append(_line(LEFT, y, right, y, "grid"))
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for time, text in _time_ticks(end) if series.is_timed else _step_ticks(end):
        x = place(time, axis.ticks[0])[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{text}</text>')
    for x, _ in (place(time, axis.ticks[0]) for time in series.cuts):
        parts.append(_line(x, TOP, x, bottom, "cut"))
    if series.limit is not None:
        y = place(0, series.limit)[1]
        parts.append(_line(LEFT, y, right, y, "limit"))
    for kind, values in (("faint", series.faint), ("data", series.values)):
        parts += _curve(kind, series.times, values, place)
    for time, value in ((series.times[index], series.values[index]) for index in series.marked):
        if value is not None:
            x, y = place(time, value)
            title = f"<title>{value:.2f} at {time:.2f} s</title>"
            parts.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>')
    size = f'y="{top}" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'


class Axis:
    """The vertical axis of a plot. `ticks`: round numbers, the first and the last at its ends."""

    def __init__(self, series: Series) -> None:
        values = [value for value in (*series.values, *series.faint, series.limit) if value is not None] or [0.0]
        low, high = 0.0 if series.from_zero else min(values), max(values)
        self._is_logarithmic = series.may_be_logarithmic and 0 < low < high / 5
        if self._is_logarithmic:
            bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
            stride = math.ceil((top - bottom) / 6)
            powers = range(bottom, top + stride, stride)
            digits = (1, 2, 5) if len(powers) < 4 else (1,)
            self.ticks = [digit * 10.0**power for power in powers[:-1] for digit in digits] + [10.0 ** powers[-1]]
        else:
            step = _round_step((max(high, low + series.least_range) - low) / 3 or abs(low) or 1.0)
            first = math.floor(low / step)
            last = max(first + 1, math.ceil(max(high, low + series.least_range) / step))
            self.ticks = [number * step for number in range(first, last + 1)]

    def height(self, value: float) -> float:
        """Return where `value` stands, from 0 at the bottom to 1 at the top."""
        low, at, high = (self._scaled(number) for number in (self.ticks[0], value, self.ticks[-1]))
        return (at - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._is_logarithmic else value


def _round_step(least: float) -> float:
    """Return the first of 1, 2, 5, 10, 20, 50 ... that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _time_ticks(seconds: float) -> list[tuple[float, str]]:
    """Return up to eight round times from 0, as `1.5 s`, `0:40` or `1:10:00`."""
    step = next((step for step in (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800) if seconds / step <= 8), None)
    step = step or 3600 * math.ceil(seconds / 8 / 3600)
    times = [number * step for number in range(int(seconds / step) + 1)]
    return [(time, f"{time:g} s" if seconds < 60 else clock_time(time).removesuffix(".00")) for time in times]


def _step_ticks(end: float) -> list[tuple[float, str]]:
    step = _round_step(max(1.0, end / 8))
    return [(number * step, f"{number * step:g}") for number in range(int(end / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _curve(kind: str, times: Sequence[float], values: Sequence[Value], place: Callable[..., Point]) -> list[str]:
    """Return a path for each run of values without a gap; where values are thinned out, also the band they lie in."""
    size = math.ceil(len(values) / MAX_POINTS) or 1
    parts: list[str] = []
    means, highest, lowest = run = ([], [], [])  # type: tuple[list[Point], list[Point], list[Point]]
    for begin in range(0, len(values) + size, size):  # the last group is empty, and ends the last run
        group = [value for value in values[begin : begin + size] if value is not None]
        if group:
            within = times[begin : begin + size]
            for points, value in zip(run, (sum(group) / len(group), max(group), min(group)), strict=True):
                points.append(place(sum(within) / len(within), value))
            continue
        if len(means) == 1:  # a path of one point shows nothing
            parts.append(f'<circle class="{kind}" cx="{means[0][0]:.1f}" cy="{means[0][1]:.1f}" r="2"/>')
        elif means:
            band = f'<path class="band" d="{_path(highest + lowest[::-1])}Z"/>' if size > 1 else ""
            parts.append(f'{band}<path class="{kind}" d="{_path(means)}"/>')
        means, highest, lowest = run = ([], [], [])
    return parts


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
