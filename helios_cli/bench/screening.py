"""Films that are looked at and not kept: the engine renders them as usual, and hands their frames on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.models import Models
from helios_cli.film.screen import Screen
from helios_cli.recipe.film import Film
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.schema import Recipe
from helios_cli.recipe.settings import resolve_settings
from helios_cli.recipe.sources import read_films
from helios_cli.units import DEFAULT_FPS


@dataclass(frozen=True)
class Showing:
    """Options of a showing: steps a stage and guidance (None: the model's own), the first film's seed, --reuse-history
    and --reuse-steps."""

    steps: tuple[int, ...] | None = None
    guidance: float | None = None
    seed: int = 0
    reuse_history: bool = False
    reuse_steps: int = 1


def show(models: Models, prompt: str, frames: int, take: Callable[[np.ndarray], None], how: Showing) -> None:
    """Render a film of a prompt; `take` receives its frames as they come, uint8 [some, height, width, 3].

    Raises what `helios render` raises.
    """
    _play(models, plan_of(models, prompt, frames, how), take)


def two_shots(models: Models, prompts: tuple[str, str], transition: str, frames: int, how: Showing) -> np.ndarray:
    """Render two shots of `frames` each: uint8 [2 * frames, height, width, 3]; `transition` is as in a recipe."""
    first, second = ({"prompt": prompt, "seconds": frames / DEFAULT_FPS} for prompt in prompts)
    recipe = Recipe.model_validate({"shot": [first, {**second, "transition": transition}]})
    return _film(models, _plan(models, Film("shots", "two shots", recipe, Path.cwd()), None, how))


def films(models: Models, prompts: Sequence[str], frames: int, how: Showing) -> Iterator[np.ndarray]:
    """Render a film of each prompt, uint8 [frames, height, width, 3], each with a seed of its own."""
    plans = [
        plan_of(models, prompt, frames, replace(how, seed=how.seed + number)) for number, prompt in enumerate(prompts)
    ]
    models.encode(text for plan in plans for chunk in plan.chunks for text, _ in chunk.prompts)
    for plan in plans:
        yield _film(models, plan)


def plan_of(models: Models, prompt: str, frames: int, how: Showing) -> Plan:
    """Plan a film as `helios render` does. InputError if the model cannot do it."""
    return _plan(models, read_films([prompt])[0], frames, how)


def _plan(models: Models, film: Film, frames: int | None, how: Showing) -> Plan:
    options = RenderOptions(frames=frames, **asdict(how))
    return plan_film(film, resolve_settings(film.recipe, options, models.checkpoint.defaults))


def _film(models: Models, plan: Plan) -> np.ndarray:
    parts: list[np.ndarray] = []
    _play(models, plan, parts.append)
    return np.concatenate(parts)


def _play(models: Models, plan: Plan, take: Callable[[np.ndarray], None]) -> None:
    writer: Any = Screen(take)
    for _ in render_chunks(plan, models, writer):
        pass
