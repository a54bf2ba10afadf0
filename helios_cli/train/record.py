"""What a run writes down for people: `log.jsonl`, one object a line, and `losses.svg`."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from helios_cli.files import replacing
from helios_cli.train.events import Trained

LOG, PLOT = "log.jsonl", "losses.svg"


@dataclass
class _Gathered:
    """Updates of a player since the last line about it."""

    lr: float = 0.0
    norms: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Record:
    """The log of the run in `folder`; only the process that `writes` touches the disk."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.log, self.writes = folder / LOG, writes
        self._clear()

    def begin(self, step: int) -> None:
        """Go on after `step`. What an earlier process logged of later steps, but did not save, goes."""
        if self.writes:
            text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
            kept = "".join(line for line in text.splitlines(True) if _step_of(line) <= step)
            with replacing(self.log) as new:
                new.write_text(kept, encoding="utf-8")
        self._clear()

    def add(self, player: str, losses: dict[str, float], lr: float, norm: float, samples: int) -> None:
        """One update of a player, with a batch of `samples`."""
        gathered = self._players[player]
        gathered.lr = lr
        gathered.norms.append(norm)
        for name, value in losses.items():
            gathered.losses[name].append(value)
        self._samples += samples

    def close(self, step: int, fraction: float, seconds: float) -> Iterator[Trained]:
        """Means of what was added since the last call, a line and an event for each player."""
        speed = self._samples / max(time.monotonic() - self._since, 1e-9)
        for player, gathered in self._players.items():
            losses = {name: fmean(values) for name, values in gathered.losses.items()}
            norm = fmean(gathered.norms)
            line = {"step": step, "player": player, "losses": losses, "lr": gathered.lr, "grad_norm": norm}
            self._write({**line, "samples_per_second": speed, "seconds": seconds})
            yield Trained(**line, samples_per_second=speed, seconds=seconds, fraction=fraction)
        self._clear()

    def probed(self, step: int, figures: dict[str, float]) -> None:
        self._write({"step": step, "probe": figures})

    def _write(self, line: dict) -> None:
        if self.writes:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _clear(self) -> None:
        self._players: dict[str, _Gathered] = defaultdict(_Gathered)
        self._samples = 0
        self._since = time.monotonic()


def _step_of(line: str) -> float:
    """The step that a line of a log is about; a line that was cut short is later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
