"""Where the frames of a film go that is looked at and not kept."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np


class Screen:
    """In the place of `writer.FilmWriter` where `render` has no fingerprints: hands the frames on and keeps nothing.

    `take` is given them as they come, uint8 [some, height, width, 3].
    """

    cache_problem = None
    target = SimpleNamespace(path="memory")

    def __init__(self, take: Callable[[np.ndarray], None]) -> None:
        self.num_frames = 0
        self._take = take

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        """Nothing stops it."""

    def write(self, frames_THWC: np.ndarray) -> None:
        self.num_frames += len(frames_THWC)
        self._take(frames_THWC)

    def end_piece(self, safe: object) -> None:
        """Nothing is made safe here."""

    def close(self) -> str:
        return self.target.path
