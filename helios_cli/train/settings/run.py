"""The tables and keys that the config files of all phases share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from helios_cli.units import FRAMES_PER_CHUNK

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Table(BaseModel):
    """A table of a config file: strict, immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, written: Any) -> Any:
        """Turn lists into tuples, and fill in keys that an inner table leaves out.

        Missing keys come from the field's default, which a phase may set differently from the inner table's own.
        """
        if not isinstance(written, Mapping):
            return written
        values = {key: _tuples(value) if isinstance(value, list) else value for key, value in written.items()}
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Table) and isinstance(values.get(name), Mapping):
                values[name] = dict(field.default) | dict(values[name])
        return values


def _tuples(value: list) -> tuple:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in value)


class Optimizer(Table):
    """The updates of a player's parameters. AdamW updates those that Muon does not.

    Attributes:
        muon: globs of parameter names for Muon; only matrices and convolution kernels among them are used.
        muon_lr: Muon's learning rate, about the spectral norm of a matrix's change.
        clip: largest norm of all gradients together; 0 is no limit.
        warmup: steps in which the rates rise from 0.
        decay: share of the run, at its end, in which the rates fall to 0.
    """

    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Weight = 0.0
    muon: tuple[str, ...] = ()
    muon_lr: Positive = 2e-3
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Weight = 1.0
    warmup: Count = 0
    decay: Fraction = 0.0


class Ema(Table):
    """The running mean of the first player's parameters, which is what `checkpoint/` holds.

    Attributes:
        decay: 0 keeps the parameters themselves.
        start: the first step that counts.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start: Count = 0


class Log(Table):
    """The steps between logs, saves, samples and probes; 0 is never.

    A run is also saved when `save_minutes` have passed since the last save, when it is stopped, and at its end.
    """

    every: AtLeastOne = 10
    save_every: AtLeastOne = 500
    save_minutes: Positive = 5.0
    samples_every: Count = 0
    probe_every: Count = 0


class Samples(Table):
    """The contents of a run's contact sheets; [log] says how often one is drawn.

    Attributes:
        prompts: empty for captions of the toy world whose combinations training never sees.
        count: the number of those captions.
        chunks: length of each film.
        pictures: frames in a row, spread evenly over the film.
        steps: solver steps of each stage.
        seed: seed of the noise and of the captions.
    """

    prompts: tuple[str, ...] = ()
    count: AtLeastOne = 8
    chunks: AtLeastOne = 2
    pictures: Annotated[int, Field(ge=2)] = 8
    steps: tuple[AtLeastOne, ...] = (4, 4, 4)
    guidance: Positive = 1.0
    seed: Count = 0

    def moments(self) -> list[int]:
        """Return the numbers of the frames to show, from a film's first to its last."""
        last = self.chunks * FRAMES_PER_CHUNK - 1
        return [round(i * last / (self.pictures - 1)) for i in range(self.pictures)]


class PhaseSettings(Table):
    """The keys at the top of every config file.

    Attributes:
        start: folder of a checkpoint or run that the phase begins with, or the name of a known model, such as tiny;
            without it, the phase begins from nothing.
        out: output folder; an unfinished run in it is resumed.
        dtype: compute type of the networks; "auto" is bfloat16 where the device multiplies it fast, else float32.
            Parameters and optimizers are always float32.
    """

    phase: str
    start: str | None = None
    out: Text
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"

    @property
    def folder(self) -> Path:
        return Path(self.out)


class TrainingSettings(PhaseSettings):
    """The settings of a phase that trains; each such phase adds its own tables.

    Attributes:
        steps, max_minutes: the run ends at whichever comes first; at least one is required.
        batch: samples of a step, over all processes.
        knows: what the finished model can show, in words that end the sentence "it knows ..."; empty for anything.
    """

    steps: AtLeastOne | None = None
    max_minutes: Positive | None = None
    batch: AtLeastOne = 16
    knows: str = ""
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    log: Log = Log()

    @model_validator(mode="after")
    def _ends(self) -> TrainingSettings:
        if self.steps is None and self.max_minutes is None:
            raise ValueError("the run has no end: write `steps = 1000`, or `max_minutes = 30`, or both")
        return self
