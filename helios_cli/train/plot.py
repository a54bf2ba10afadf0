"""`losses.svg`: each loss and each probed figure over the steps, from a run's log."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from helios_cli.check import plot
from helios_cli.files import replacing


def plot_log(log: Path, picture: Path) -> None:
    """Draw the log `log` to the SVG `picture`; nothing if it has no figures yet."""
    plots = {}
    for name, points in read_log(log).items():
        steps, values = zip(*points, strict=True)
        latest = fmean(values[-math.ceil(len(values) / 120) :])
        plots[f"{name}  {latest:.4g}"] = plot.Series(
            steps, values, from_zero=False, least_range=0, is_timed=False, may_be_logarithmic=True
        )
    if plots:
        with replacing(picture) as new:
            new.write_text(plot.picture(plots), encoding="utf-8")


def read_log(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the finite figures in a log as (step, value), by name: `player: loss` or `probe: figure`."""
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for text in log.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        source, figures = ("probe", line["probe"]) if "probe" in line else (line["player"], line["losses"])
        for name, value in figures.items():
            if math.isfinite(value):
                series[f"{source}: {name}"].append((line["step"], value))
    return dict(series)
