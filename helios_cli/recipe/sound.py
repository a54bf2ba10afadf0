"""The sound of a film: which file, and how it is fitted to the film's length."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from helios_cli.recipe.values import pick

if TYPE_CHECKING:
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.options import RenderOptions

Fit = Literal["trim", "loop", "pad"]

NONE = "none"
"""The value of --audio that leaves out the recipe's sound."""

SOUND_KEYS = ("audio", "audio_fit", "audio_fade")
DEFAULT_FADE_SECONDS = 0.5
MAX_FADE_SECONDS = 3600


@dataclass(frozen=True)
class Sound:
    """A sound file under a film.

    Attributes:
        path: absolute.
        fit: "trim" cuts it at the film's end, "loop" repeats it up to there, "pad" keeps it whole. Silence follows one
            that ends before.
        fade: seconds in which it fades out where it is cut.
    """

    path: Path
    fit: Fit = "trim"
    fade: float = DEFAULT_FADE_SECONDS


ChosenSound = tuple[Sound | None, Mapping[str, str]]
"""The sound of a film, and where each of its keys comes from."""


def choose_sound(film: Film, options: RenderOptions) -> ChosenSound:
    """Return the sound of a film, None without one, and where each of its keys comes from: a flag, the recipe or the
    default. Takes have none."""
    audio, origin = pick("audio", options, film.recipe)
    fit, fit_origin = pick("audio_fit", options, film.recipe, "trim")
    fade, fade_origin = pick("audio_fade", options, film.recipe, DEFAULT_FADE_SECONDS)
    origins = dict(zip(SOUND_KEYS, (origin, fit_origin, fade_origin), strict=True))
    if audio is None or options.takes or (origin == "flag" and audio == NONE):
        return None, origins
    path = os.path.abspath(audio) if origin == "flag" else film.picture(audio)
    return Sound(Path(path), fit, float(fade)), origins
