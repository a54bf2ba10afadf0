"""The settings of a training run: one TOML file, one phase. All that is wrong in it is said at once, without torch.

A phase called `vae` is the two modules `train/settings/vae.py` (a class `Settings` derived from `Config`, no torch) and
`train/phases/vae.py` (a function `build`).
"""

from __future__ import annotations

import json
import pkgutil
import tomllib
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from helios_cli.errors import in_our_words
from helios_cli.recipe.files import read_text
from helios_cli.recipe.problems import Place, Problems, line_of, nearest
from helios_cli.recipe.trees import read_tree
from helios_cli.train import settings
from helios_cli.visible import printable

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Table(BaseModel):
    """A table of a config file: strict, without unknown keys, unchanging."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, written: Any) -> Any:
        """Tuples for the lists of a file. What a table leaves out is as in the default of its field, which a phase may
        have set otherwise than the table's own."""
        if not isinstance(written, Mapping):
            return written
        values = {key: _tuples(value) if isinstance(value, list) else value for key, value in written.items()}
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Table) and isinstance(values.get(name), Mapping):
                values[name] = {**dict(field.default), **values[name]}
        return values


def _tuples(value: list) -> tuple:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in value)


class Optimizer(Table):
    """How a player's parameters are moved. AdamW moves what Muon does not.

    Attributes:
        muon: globs of the names of the parameters that Muon moves, if they are matrices or kernels of convolutions.
        muon_lr: its rate; the change of a matrix has a spectral norm of about this much.
        clip: largest norm of all gradients together; 0 is no limit.
        warmup: steps in which the rates rise from 0.
        decay: share of the run, at its end, in which the rates fall to 0.
    """

    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    muon: tuple[str, ...] = ()
    muon_lr: Positive = 2e-3
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Annotated[float, Field(ge=0)] = 1.0
    warmup: Count = 0
    decay: Fraction = 0.0


class Ema(Table):
    """The running mean of the first player's parameters, which `checkpoint/` holds.

    Attributes:
        decay: 0 keeps the parameters themselves.
        start: first step that counts.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start: Count = 0


class Log(Table):
    """When what is written down, in steps; 0 is never.

    `save_minutes` saves as well when so many minutes have gone by since it was last done; a run that ends or is stopped
    is saved in any case.
    """

    every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 500
    save_minutes: Positive = 5.0
    samples_every: Count = 0
    probe_every: Count = 0


class Job(Table):
    """What every config file has at its top.

    Attributes:
        start: folder of a checkpoint, or of a run, that the phase begins with; without it, it begins from nothing.
        out: folder of what is made; what stands there unfinished goes on.
        dtype: what the networks compute in; "auto" is bfloat16 where the device multiplies it fast, else float32.
            Parameters and optimizers are always float32.
    """

    phase: str
    start: str | None = None
    out: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"

    @property
    def folder(self) -> Path:
        return Path(self.out)


class Config(Job):
    """The settings of a phase that trains; a phase derives its own from it and adds its tables.

    Attributes:
        steps, max_minutes: the run ends at whichever comes first; one of them has to be there.
        batch: samples of a step, of all processes together.
        knows: what the finished model can show, in words that end the sentence "it knows ..."; empty for anything.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    max_minutes: Positive | None = None
    batch: Annotated[int, Field(ge=1)] = 16
    knows: str = ""
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    log: Log = Log()

    @model_validator(mode="after")
    def _ends(self) -> Config:
        if self.steps is None and self.max_minutes is None:
            raise ValueError("the run has no end: write `steps = 1000`, or `max_minutes = 30`, or both")
        return self


def phases() -> tuple[str, ...]:
    """The names of the phases there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(settings.__path__)))


def settings_of(phase: str) -> type[Job]:
    """The class of a phase's settings."""
    return import_module(f"helios_cli.train.settings.{phase}").Settings


def load(path: Path, overrides: Iterable[str] = ()) -> Job:
    """The settings in the file at `path`, with `overrides` such as `loss.kl=1e-3`. All problems are raised together, as
    an InputError."""
    problems = Problems(str(path))
    tree, lines = read_tree(read_text(path, problems), ".toml", problems)
    places = {}
    for override in overrides:
        place = _override(tree, override, problems)
        places[place] = override
    problems.stop()
    model = _settings_in(tree, lines, problems)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        _add_all(error, model, lines, places, problems)
    problems.stop()
    raise AssertionError("a validation error without errors")


def _settings_in(tree: dict, lines: Mapping[Place, int], problems: Problems) -> type[Job]:
    phase = tree.get("phase")
    if phase in phases():
        return settings_of(phase)
    known = ", ".join(phases())
    if phase is None:
        near = nearest("phase", tree)
        meant = f" in place of `{near}`" if near else ""
        problems.add("is missing", key="phase", suggestion=f'write `phase = "..."`{meant}, one of {known}')
    else:
        near = nearest(phase, phases()) if isinstance(phase, str) else None
        message = f"there is no phase {printable(repr(phase))}"
        suggestion = f'write `phase = "{near}"`' if near else f"write one of {known}"
        problems.add(message, line=line_of(lines, ("phase",)), key="phase", suggestion=suggestion)
    problems.stop()
    raise AssertionError("a problem that does not stop")


def _override(tree: dict, override: str, problems: Problems) -> Place:
    """Put `loss.kl=1e-3` into `tree`; returns the place of it."""
    name, separator, written = override.partition("=")
    place = tuple(part.strip() for part in name.split("."))
    try:
        if not separator or not all(place):
            raise ValueError("it is not KEY=VALUE")
        value = _value(written.strip())
    except ValueError as error:
        problems.add(f"--set {printable(override)}: {error}", suggestion="write for example --set optimizer.lr=1e-4")
        return place
    table = tree
    for part in place[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            problems.add(f"--set {printable(override)}: `{part}` is no table")
            return place
    table[place[-1]] = value
    return place


def _value(written: str) -> object:
    """A TOML value; what is none is text."""
    try:
        found = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return found["value"]


def _add_all(
    error: ValidationError,
    model: type[Job],
    lines: Mapping[Place, int],
    overrides: Mapping[Place, str],
    problems: Problems,
) -> None:
    for found in error.errors(include_url=False):
        place = tuple(part for part in found["loc"] if isinstance(part, str | int))
        message, suggestion = _said(found, place, model)
        source = next((f"--set {text}" for key, text in overrides.items() if key == place), None)
        if source:
            message = f"{printable(source)}: {message}"
        key = ".".join(str(part) for part in place) or None
        line = None if source else line_of(lines, place)
        problems.add(message, line=line, key=key, suggestion=suggestion)
    problems.all.sort(key=lambda problem: problem.line or 0)


def _said(error: dict, place: Place, model: type[Job]) -> tuple[str, str | None]:
    """Message and suggestion for one of pydantic's errors."""
    kind, value = error["type"], error["input"]
    if kind == "extra_forbidden":
        return "unknown key", _instead(place, model)
    if kind == "missing":
        return "is missing", f"write `{place[-1]} = ...`"
    if kind == "value_error":
        return str(error["ctx"]["error"]), None
    if kind in ("model_type", "dict_type"):
        return f"must be a table, not {printable(repr(value))}", f"write [{'.'.join(map(str, place))}] on a line"
    if kind == "literal_error":
        table = _table_at(model, place[:-1])
        words = [word for word in _words(table.model_fields[place[-1]].annotation)] if table else []
        near = nearest(value, words) if isinstance(value, str) else None
        suggestion = f'write `{place[-1]} = "{near}"`' if near else None
        return f"must be {error['ctx']['expected']}, not {printable(repr(value))}", suggestion
    message = in_our_words(error["msg"].replace("a valid string", "text in quotes"))
    return f"{message[0].lower()}{message[1:]}, not {printable(repr(value))}", _default(place, model)


def _instead(place: Place, model: type[Job]) -> str:
    """What was meant by an unknown key."""
    table = _table_at(model, place[:-1])
    own = tuple(table.model_fields) if table else ()
    key = str(place[-1])
    if near := nearest(key, own):
        return f"write `{near}`"
    for name, field in model.model_fields.items():
        inner = _table(field.annotation)
        if inner and key in inner.model_fields:
            return f"`{key}` belongs into [{name}]"
    if len(place) > 1 and key in model.model_fields:
        return f"`{key}` belongs above the first table"
    return f"the keys here are {', '.join(own)}"


def _default(place: Place, model: type[Job]) -> str | None:
    """What stands at `place` unless it is written."""
    found: object = {name: field.default for name, field in model.model_fields.items()}
    for part in place:
        values = dict(found) if isinstance(found, dict | Table) else {}
        found = values.get(part)
    if not isinstance(found, bool | int | float | str):
        return None
    return f"the default is {json.dumps(found)}"


def _table_at(model: type[Job], place: Place) -> type[Table] | None:
    """The model of the table at `place`; None if there is none."""
    table: type[Table] | None = model
    for part in place:
        field = table.model_fields.get(str(part)) if table else None
        table = _table(field.annotation) if field else None
    return table


def _table(annotation: object) -> type[Table] | None:
    """The table among the types that a field may have."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Table):
            return kind
    return None


def _words(annotation: object) -> list[str]:
    """The words that a field allows."""
    if get_args(annotation) and all(isinstance(word, str) for word in get_args(annotation)):
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in _words(part)]
