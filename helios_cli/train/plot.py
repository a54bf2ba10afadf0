"""`losses.png`: how each loss and each probed figure went, from a run's log."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Series = list[tuple[float, float]]
"""(step, value) by step."""

WIDTH, HEIGHT = 620, 200
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 26, 22
"""Of a panel, and the margins around its plotted area, in pixels."""

COLUMNS = 2
GROUPS = 120
"""Points of the line; each is the mean of the values around it, which show as paler dots."""

INK, GRID, DOT, LINE = "#333333", "#dddddd", "#b5cde6", "#1f5fa8"


def plot_log(log: Path, picture: Path) -> None:
    """Draw the log `log` to the PNG `picture`; nothing if it holds no figures yet."""
    series = read_log(log)
    if not series:
        return
    rows = -(-len(series) // COLUMNS)
    canvas = Image.new("RGB", (WIDTH * min(COLUMNS, len(series)), HEIGHT * rows), "white")
    for index, (name, points) in enumerate(series.items()):
        panel = _panel(name, points)
        canvas.paste(panel, (WIDTH * (index % COLUMNS), HEIGHT * (index // COLUMNS)))
    new = picture.with_suffix(".new")
    canvas.save(new, format="PNG")
    os.replace(new, picture)


def read_log(log: Path) -> dict[str, Series]:
    """The finite figures in a log by name: `player: loss` or `probe: figure`."""
    series: dict[str, Series] = defaultdict(list)
    for text in log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        source, figures = ("probe", line["probe"]) if "probe" in line else (line["player"], line["losses"])
        for name, value in figures.items():
            if math.isfinite(value):
                series[f"{source}: {name}"].append((line["step"], value))
    return dict(series)


def means(points: Series) -> Series:
    """`points` in at most GROUPS groups of the same size, each as its mean."""
    size = math.ceil(len(points) / GROUPS)
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(_mean([step for step, _ in group]), _mean([value for _, value in group])) for group in groups]


def _panel(name: str, points: Series) -> Image.Image:
    panel = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(panel)
    axis = Axis([value for _, value in points])
    last = max(step for step, _ in points)

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * axis.height(value)

    font = ImageFont.load_default(12)
    draw.text((LEFT, 6), f"{name}  {means(points)[-1][1]:.4g}", fill=INK, font=font)
    for tick in axis.ticks:
        y = place(0, tick)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=GRID)
        draw.text((LEFT - 6, y), f"{tick:.3g}", fill=INK, font=font, anchor="rm")
    draw.text((WIDTH - RIGHT, HEIGHT - 4), f"step {last:g}", fill=INK, font=font, anchor="rb")
    draw.point([place(*point) for point in points], fill=DOT)
    line = [place(*point) for point in means(points)]
    if len(line) > 1:
        draw.line(line, fill=LINE, width=2, joint="curve")
    return panel


class Axis:
    """The vertical axis for `values`: logarithmic if all are positive and they span more than a factor of five."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        self.logarithmic = low > 0 and high > 5 * low
        margin = 0.04 * (self._scaled(high) - self._scaled(low)) or 0.5
        self._low, self._high = self._scaled(low) - margin, self._scaled(high) + margin

    def height(self, value: float) -> float:
        """Where `value` stands, from 0 at the bottom to 1 at the top."""
        return (self._scaled(value) - self._low) / (self._high - self._low)

    @property
    def ticks(self) -> list[float]:
        """Round values in range: 1, 2, 5 times powers of ten, or multiples of such."""
        if self.logarithmic:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            marks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            found = [mark for mark in marks if 0 <= self.height(mark) <= 1]
            return found if len(found) <= 6 else [mark for mark in found if f"{mark:e}".startswith("1")]
        span = self._high - self._low
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 4)
        first = math.ceil(self._low / step)
        return [number * step for number in range(first, math.floor(self._high / step) + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
