"""Which value counts: a flag over the recipe over the model's preset over the default, and where each came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import InputError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.values import LENGTH_KEYS, MAX_FPS, MAX_FRAMES, MAX_SECONDS, MAX_SEED, check_size
from helios_cli.units import DEFAULT_FPS

if TYPE_CHECKING:
    from helios_cli.recipe.schema import Recipe

DEFAULT_MODEL = "auto"
MODEL_VARIABLE = "HELIOS_MODEL"
DEFAULT_SEED = 42

_LIMITS = {
    "fps": (1, MAX_FPS),
    "seconds": (1 / MAX_FPS, MAX_SECONDS),
    "minutes": (1 / MAX_FPS / 60, MAX_SECONDS / 60),
    "frames": (1, MAX_FRAMES),
    "seed": (0, MAX_SEED),
    "guidance": (0, 100),
}


@dataclass(frozen=True)
class ModelDefaults:
    """What a checkpoint brings along: its native (width, height), and its preset. One number of steps a stage."""

    size: tuple[int, int]
    steps: tuple[int, ...]
    guidance: float


@dataclass(frozen=True)
class Settings:
    """The values that a film is planned with.

    Attributes:
        num_frames: length of the film, or None if only its shots say.
        image, video: start of the first shot, in place of what the recipe says; absolute.
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


def choose_model(recipe: Recipe, options: RenderOptions) -> tuple[str, str]:
    """The name of the model, and its origin, which may be MODEL_VARIABLE. It comes first: the other values need the
    model's defaults."""
    origins: dict[str, str] = {}
    asked = os.environ.get(MODEL_VARIABLE)
    default, origin = (asked, MODEL_VARIABLE) if asked else (DEFAULT_MODEL, "default")
    return _pick("model", options, recipe, default, origins, default_origin=origin), origins["model"]


def resolve(recipe: Recipe, options: RenderOptions, model: ModelDefaults) -> Settings:
    """The settings of a film. InputError if a flag is out of range or the model cannot do what is asked."""
    check_flags(options)
    origins: dict[str, str] = {"image": "default", "video": "default"}
    fps = float(_pick("fps", options, recipe, float(DEFAULT_FPS), origins))
    size = _pick("size", options, recipe, model.size, origins, default_origin="model")
    steps = _pick("steps", options, recipe, model.steps, origins, default_origin="model")
    check_size(size, len(model.steps))
    if len(steps) != len(model.steps):
        preset = ",".join(str(count) for count in model.steps)
        message = f"steps {','.join(map(str, steps))}: this model has {len(model.steps)} stages, with a number for each"
        raise InputError(message, hint=f"its preset is {preset}")
    for key in ("image", "video"):
        if getattr(options, key) is not None:
            origins[key] = "flag"
        elif getattr(recipe.shots[0], key) is not None:
            origins[key] = "recipe"
    return Settings(
        size=size,
        steps=steps,
        guidance=float(_pick("guidance", options, recipe, model.guidance, origins, default_origin="model")),
        fps=fps,
        num_frames=_length(options, recipe, fps, origins),
        seed=_pick("seed", options, recipe, DEFAULT_SEED, origins),
        negative=_pick("negative", options, recipe, "", origins),
        image=_absolute(options.image),
        video=_absolute(options.video),
        origins=origins,
    )


def _pick(
    key: str,
    options: RenderOptions,
    recipe: Recipe,
    default,
    origins: dict[str, str],
    *,
    default_origin: str = "default",
):
    for origin, value in (("flag", getattr(options, key)), ("recipe", getattr(recipe, key))):
        if value is not None:
            origins[key] = origin
            return value
    origins[key] = default_origin
    return default


def _length(options: RenderOptions, recipe: Recipe, fps: float, origins: dict[str, str]) -> int | None:
    """Frames of the whole film; a flag of any unit goes before a recipe's of any unit."""
    for origin, given in (("flag", options), ("recipe", recipe)):
        frames = asked_frames(given, fps)
        if frames is not None:
            origins["num_frames"] = origin
            return frames
    origins["num_frames"] = "recipe" if any(shot.seconds is not None for shot in recipe.shots) else "default"
    return None


def asked_fps(options: RenderOptions, recipe: Recipe) -> float:
    """The film's rate, which no model has a say in."""
    return options.fps or recipe.fps or float(DEFAULT_FPS)


def asked_frames(given: RenderOptions | Recipe, fps: float) -> int | None:
    """The film's length in frames as flags or a recipe give it, in one of three units; None if they do not."""
    if given.frames is not None:
        return given.frames
    seconds = given.minutes * 60 if given.minutes is not None else given.seconds
    return None if seconds is None else max(1, round(seconds * fps))


def check_flags(options: RenderOptions) -> None:
    """InputError if flags contradict each other or are out of range."""
    lengths = [f"--{key}" for key in LENGTH_KEYS if getattr(options, key) is not None]
    if len(lengths) > 1:
        raise InputError(f"{' and '.join(lengths)} both give the film's length", hint="keep one of them")
    if options.image is not None and options.video is not None:
        raise InputError("a film starts from --image or continues --video, not both", hint="keep one of them")
    for key, (least, most) in _LIMITS.items():
        value = getattr(options, key)
        if value is not None and not least <= value <= most:  # NaN fails too
            raise InputError(f"--{key} {value}: must be {_number(least)} to {_number(most)}")


def _number(value: float) -> str:
    """In full where it is whole: 1,036,800 and not 1.0368e+06."""
    return f"{round(value):,}" if value == round(value) else f"{value:.2g}"


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(path))
