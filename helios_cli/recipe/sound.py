"""The sound of a film: which file, and how it is fitted to the film's length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Fit = Literal["trim", "loop", "pad"]

DEFAULT_FADE_SECONDS = 0.5


@dataclass(frozen=True)
class Sound:
    """A sound file under a film.

    Attributes:
        path: absolute.
        fit: "trim" cuts it at the film's end, "loop" repeats it up to there, "pad" keeps it whole. Silence follows what
            is shorter.
        fade: seconds in which it fades out where it is cut.
    """

    path: Path
    fit: Fit = "trim"
    fade: float = DEFAULT_FADE_SECONDS
