"""The events of a training run, which the command line shows. A phase may add its own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

from helios_cli.units import format_figure

STREAM_VERSION = 1


@dataclass(frozen=True)
class Event(ABC):
    """Plain values. `to_dict` returns the JSON object of the event stream (`--progress json`)."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The event in words, for a log: one line or several."""

    def to_dict(self) -> dict:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"version": STREAM_VERSION, "event": name, **asdict(self)}


@dataclass(frozen=True)
class Notice(Event):
    """A message to the user that does not stop the run."""

    message: str

    @property
    def text(self) -> str:
        return self.message


@dataclass(frozen=True)
class RunStarted(Event):
    """The first event of a run. `step` steps are already done; `parameters` counts each player's trained parameters."""

    phase: str
    out: str
    step: int
    steps: int | None
    max_minutes: float | None
    batch: int
    processes: int
    device: str
    dtype: str
    parameters: dict[str, int]

    @property
    def text(self) -> str:
        players = ", ".join(f"{name} with {count:,} parameters" for name, count in self.parameters.items())
        ends = [f"{self.steps} steps"] if self.steps else []
        ends += [f"{self.max_minutes:g} min"] if self.max_minutes else []
        resumed = f"\ncontinues after step {self.step}" if self.step else ""
        length = f"{' or '.join(ends)} of {self.batch} samples"
        return f"{self.phase}: {players}; {length}, to {self.out}\n{_where(self)}{resumed}"


@dataclass(frozen=True)
class Trained(Event):
    """A player's updates since the last such event. `losses` and `grad_norm` are means over them.

    `fraction` is the share of the run that is over after `step` steps and `seconds` of training.
    """

    step: int
    player: str
    losses: dict[str, float]
    lr: float
    grad_norm: float
    samples_per_second: float
    seconds: float
    fraction: float

    @property
    def text(self) -> str:
        return (
            f"step {self.step}, {self.fraction:.1%}: {self.player} {figures_text(self.losses)}; lr {self.lr:.3g}, "
            f"gradient {format_figure(self.grad_norm)}, {format_figure(self.samples_per_second)} samples/s"
        )


@dataclass(frozen=True)
class Probed(Event):
    """The figures of the phase's probe."""

    step: int
    figures: dict[str, float]

    @property
    def text(self) -> str:
        return f"step {self.step}: {figures_text(self.figures)}"


@dataclass(frozen=True)
class Sampled(Event):
    """A contact sheet was written."""

    step: int
    path: str

    @property
    def text(self) -> str:
        return f"step {self.step}: wrote {self.path}"


@dataclass(frozen=True)
class Saved(Event):
    """The state of `step` is saved, and the checkpoint, a folder, or LoRA, a file."""

    step: int
    checkpoint: str

    @property
    def text(self) -> str:
        return f"step {self.step}: saved"


@dataclass(frozen=True)
class RunDone(Event):
    """The last event of a finished run. `skipped` counts updates that were not finite; `checkpoint` may be a LoRA."""

    step: int
    seconds: float
    skipped: int
    checkpoint: str

    @property
    def text(self) -> str:
        skipped = f", {self.skipped} updates left out because they were not finite" if self.skipped else ""
        return f"wrote {self.checkpoint}: {self.step} steps in {self.seconds / 60:.1f} min{skipped}"


@dataclass(frozen=True)
class FillStarted(Event):
    """The first event of a phase that trains nothing and fills the folder `out`."""

    phase: str
    out: str
    processes: int
    device: str
    dtype: str

    @property
    def text(self) -> str:
        return f"{self.phase}: to {self.out}\n{_where(self)}"


@dataclass(frozen=True)
class Filled(Event):
    """`done` of `total` pieces are in the folder. Phases derive their own events from it."""

    done: int
    total: int


@dataclass(frozen=True)
class FillDone(Event):
    """The last event of such a phase: this process has made its share of the missing pieces."""

    out: str

    @property
    def text(self) -> str:
        return f"wrote {self.out}"


def _where(started: RunStarted | FillStarted) -> str:
    processes = f" in {started.processes} processes" if started.processes > 1 else ""
    return f"on {started.device} in {started.dtype}{processes}"


def figures_text(figures: dict[str, float]) -> str:
    """Format figures as `flow 0.0312, kl 4.1`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
