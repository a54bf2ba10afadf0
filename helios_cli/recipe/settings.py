"""Chooses each setting: a flag over the recipe over the model's preset over the default, with its origin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_cli.architecture import ModelDefaults
from helios_cli.errors import InputError
from helios_cli.recipe.flags import flag_of
from helios_cli.recipe.options import FLAGS, RenderOptions
from helios_cli.recipe.speed import chosen
from helios_cli.recipe.values import LENGTH_KEYS, check_size, pick
from helios_cli.units import DEFAULT_FPS

if TYPE_CHECKING:
    from helios_cli.recipe.schema import Recipe

DEFAULT_MODEL = "auto"
MODEL_VARIABLE = "HELIOS_MODEL"
DEFAULT_SEED = 42

LEAST_STEPS_REUSED = 4
"""Steps of a stage of which --reuse-steps leaves one out: the first two and the last make model calls."""


@dataclass(frozen=True)
class Settings:
    """The values a film is planned with.

    Attributes:
        num_frames: length of the film, or None if only its shots have lengths.
        image, video: start of the first shot, instead of the recipe's; absolute.
        origins: for each of these values "flag", "recipe", "model" or "default".
    """

    size: tuple[int, int]
    steps: tuple[int, ...]
    guidance: float
    fps: float
    num_frames: int | None
    seed: int
    negative: str
    image: Path | None
    video: Path | None
    origins: Mapping[str, str]
    reuse_history: bool = False
    reuse_steps: int = 1


def choose_model(recipe: Recipe, options: RenderOptions) -> tuple[str, str]:
    """Return the name of the model, and its origin, which may be MODEL_VARIABLE.

    It comes first, since the other values need the model's defaults.
    """
    name = os.environ.get(MODEL_VARIABLE)
    default = (name, MODEL_VARIABLE) if name else (DEFAULT_MODEL, "default")
    return pick("model", options, recipe, *default)


def resolve_settings(recipe: Recipe, options: RenderOptions, model: ModelDefaults) -> Settings:
    """Return the settings of a film. InputError if a flag is out of range or does not fit the model."""
    check_flags(options)
    defaults = {"size": model.size, "steps": model.steps, "guidance": model.guidance}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, default in ({"fps": DEFAULT_FPS, "seed": DEFAULT_SEED, "negative": ""} | defaults).items():
        origin = "model" if key in defaults else "default"
        values[key], origins[key] = pick(key, options, recipe, default, origin)
    check_size(values["size"], len(model.steps))
    if options.reuse_history:
        _require_stages(options, len(model.steps))
    if len(values["steps"]) != len(model.steps):
        steps, preset = (",".join(map(str, numbers)) for numbers in (values["steps"], model.steps))
        message = f"steps {steps}: this model has {len(model.steps)} stages and needs a number for each"
        raise InputError(message, hint=f"its preset is {preset}")
    for key in ("image", "video"):
        path = getattr(options, key)
        values[key] = None if path is None else Path(os.path.abspath(path))
        _, origins[key] = pick(key, options, recipe.shots[0])
    values |= {key: float(values[key]) for key in ("fps", "guidance")}
    by_flag = length_in_frames(options, values["fps"]) is not None  # of any unit, over a recipe's of any unit
    values["num_frames"] = length_in_frames(options if by_flag else recipe, values["fps"])
    if (options.reuse_steps or 1) > 1:
        _require_steps(values["steps"])
    by_recipe = values["num_frames"] is not None or any(shot.seconds is not None for shot in recipe.shots)
    origins["num_frames"] = "flag" if by_flag else "recipe" if by_recipe else "default"
    reuse = reuse_of(options, values["steps"])
    for key in (key for key, value in reuse.items() if value != getattr(Settings, key)):
        origins[key] = "speed" if getattr(options, key) is None else "flag"
    return Settings(**values, origins=origins, **reuse)


def reuse_of(options: RenderOptions, steps: tuple[int, ...]) -> dict[str, Any]:
    """Return --reuse-history and --reuse-steps: as they were given, else as --speed has them where they save a call."""
    history, every = (chosen(options.speed, key) for key in ("reuse_history", "reuse_steps"))
    if options.reuse_history is not None:
        history = options.reuse_history
    elif len(steps) == 1 or options.gpus_per_film > 1:
        history = False
    if options.reuse_steps is not None:
        every = options.reuse_steps
    elif max(steps) < LEAST_STEPS_REUSED:
        every = 1
    return {"reuse_history": bool(history), "reuse_steps": every or 1}


def _require_stages(options: RenderOptions, stages: int) -> None:
    """Raise InputError where --reuse-history would save nothing, or cannot be done."""
    if stages == 1:
        message = "--reuse-history: this model has one stage, in which every call computes its history"
        raise InputError(message, hint="leave it out; mid and distilled have stages")
    if options.gpus_per_film > 1:
        message = f"--reuse-history does not work with --gpus-per-film {options.gpus_per_film}"
        raise InputError(message, hint="leave out one of them")


def _require_steps(steps: tuple[int, ...]) -> None:
    """Raise InputError where --reuse-steps would save nothing."""
    if max(steps) < LEAST_STEPS_REUSED:
        given = ",".join(map(str, steps))
        message = f"--reuse-steps: with steps {given} each one makes model calls, as flows are extrapolated from two"
        raise InputError(message, hint=f"leave it out; it takes a stage of {LEAST_STEPS_REUSED} steps at least")


def film_fps(options: RenderOptions, recipe: Recipe) -> float:
    """Return the film's rate, which does not depend on the model."""
    return options.fps or recipe.fps or float(DEFAULT_FPS)


def length_in_frames(given: RenderOptions | Recipe, fps: float) -> int | None:
    """Return the film's length in frames from flags or a recipe, in one of three units; None without one."""
    if given.frames is not None:
        return given.frames
    seconds = given.minutes * 60 if given.minutes is not None else given.seconds
    return None if seconds is None else max(1, round(seconds * fps))


def check_flags(options: RenderOptions) -> None:
    """Raise InputError if flags contradict each other or are out of range."""
    lengths = [f"--{key}" for key in LENGTH_KEYS if getattr(options, key) is not None]
    if len(lengths) > 1:
        raise InputError(f"{' and '.join(lengths)} both give the film's length", hint="keep one of them")
    if options.image is not None and options.video is not None:
        raise InputError("a film starts from --image or continues --video, not both", hint="keep one of them")
    for key, flag in FLAGS.items():
        value = getattr(options, key)
        if flag.least is not None and value is not None and not flag.least <= value <= (flag.most or value):  # NaN too
            limits = f"{_number(flag.least)} to {_number(flag.most)}" if flag.most else f"{_number(flag.least)} or more"
            raise InputError(f"{flag_of(key)} {value}: must be {limits}")


def _number(value: float) -> str:
    """Return a whole number in full: 1,036,800 and not 1.0368e+06."""
    return f"{round(value):,}" if value == round(value) else f"{value:.2g}"
