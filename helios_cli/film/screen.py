"""Takes the frames of a film that is shown or measured, and not written."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Screen:
    """A stand-in for `writer.FilmWriter` in a render without fingerprints: it passes the frames on and keeps nothing.

    `take` gets them as they come, uint8 [some, height, width, 3].
    """

    cache_problem = None
    has_after = False
    target = SimpleNamespace(path="memory")

    def __init__(self, take: Callable[[np.ndarray], None]) -> None:
        self.num_frames = 0
        self._take = take

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def check(self) -> None:
        """Do nothing: no error stops it."""

    def write(self, frames_THWC: np.ndarray) -> None:
        self.num_frames += len(frames_THWC)
        self._take(frames_THWC)

    def end_piece(self, safe: object) -> None:
        """Do nothing: no chunk is made safe."""

    def close(self) -> str:
        return self.target.path
