"""A run's log for people: `log.jsonl`, one object a line, and its plot `losses.svg`."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from helios_cli.check import plot
from helios_cli.files import replacing
from helios_cli.train.events import Trained

LOG, PLOT = "log.jsonl", "losses.svg"


@dataclass
class _Updates:
    """The updates of a player since the last line about it."""

    lr: float = 0.0
    norms: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class RunLog:
    """The log of the run in `folder`; only the process that `writes` touches the disk."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.path, self.writes = folder / LOG, writes
        self._clear()

    def begin(self, step: int) -> None:
        """Continue after `step`, and drop lines about later steps, which an earlier process did not save."""
        if self.writes:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            with replacing(self.path) as new:
                lines = (line for line in text.splitlines(True) if _step_of(line) <= step)
                new.write_text("".join(lines), encoding="utf-8")
        self._clear()

    def add(self, player: str, losses: dict[str, float], lr: float, norm: float, samples: int) -> None:
        """Note one update of a player, on a batch of `samples`."""
        updates = self._players[player]
        updates.lr = lr
        updates.norms.append(norm)
        for name, value in losses.items():
            updates.losses[name].append(value)
        self._samples += samples

    def close(self, step: int, fraction: float, seconds: float) -> Iterator[Trained]:
        """Write a line and yield an event for each player: means over the updates since the last call."""
        speed = self._samples / max(time.monotonic() - self._since, 1e-9)
        for player, updates in self._players.items():
            losses = {name: fmean(values) for name, values in updates.losses.items()}
            norm = fmean(updates.norms)
            line = {"step": step, "player": player, "losses": losses, "lr": updates.lr, "grad_norm": norm}
            self._write({**line, "samples_per_second": speed, "seconds": seconds})
            yield Trained(**line, samples_per_second=speed, seconds=seconds, fraction=fraction)
        self._clear()

    def probed(self, step: int, figures: dict[str, float]) -> None:
        self._write({"step": step, "probe": figures})

    def plot(self) -> None:
        plot_log(self.path, self.path.with_name(PLOT))

    def _write(self, line: dict) -> None:
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _clear(self) -> None:
        self._players: dict[str, _Updates] = defaultdict(_Updates)
        self._samples = 0
        self._since = time.monotonic()


def _step_of(line: str) -> float:
    """Return the step that a line is about; a truncated line counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


def plot_log(log: Path, picture: Path) -> None:
    """Draw each loss and probed figure of `log` over the steps to the SVG `picture`; nothing if there are none."""
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
