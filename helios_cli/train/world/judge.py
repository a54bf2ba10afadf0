"""Score films of the toy world: what they show against what their prompts say, and how well long films last.

Films arrive as frames; nothing here renders. Everything is read from pixels by `world.reading`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from helios_cli.train.world.captions import Attributes
from helios_cli.train.world.reading import Look, joined, look, read
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK

SPAN_SECONDS = 10
"""Length of the first and last part of a film whose backgrounds are compared."""

JUMP = 2.0
"""Largest step of an object from one chunk to the next, relative to its usual step."""

READING_ERROR = 0.5
"""Error in pixels of some readings of an object's centre; the usual step of a resting object is 0."""

FASTEST = 8.5
"""Largest usual step in pixels a frame, in a picture 64 high: no object of the world is faster."""

SAME_PATH = 3.0
"""Mean distance in pixels within which a chunk repeats the path of the first one."""


@dataclass(frozen=True)
class Score:
    """The score of one film.

    Attributes:
        background, colour, shape, motion: whether each is as in the prompt.
        whole: share of the frames with an object in one piece.
        sharpness: 1 / width of the object's outline in pixels.
        borders: number of borders between chunks; the object crosses `smooth` of them without a jump.
    """

    background: bool
    colour: bool
    shape: bool
    motion: bool
    whole: float
    sharpness: float
    borders: int
    smooth: int


ATTRIBUTES = tuple(field.name for field in fields(Attributes))


def score(frames: np.ndarray, expected: Attributes) -> Score:
    """Score a film, uint8 [frames, height, width, 3], whose prompt has these attributes."""
    film = read(frames)
    jumps = jumps_of(film.path)
    return Score(
        **{name: getattr(film, name) == getattr(expected, name) for name in ATTRIBUTES},
        whole=film.whole,
        sharpness=film.sharpness,
        borders=len(jumps),
        smooth=int((jumps <= JUMP).sum()),
    )


def adherence(scores: Sequence[Score]) -> dict[str, float | None]:
    """Return the shares of films with the right background, colour, shape and motion, and means of the rest.

    `smooth_borders` is None if all films have one chunk.
    """
    shares = {name: float(np.mean([getattr(one, name) for one in scores])) for name in ATTRIBUTES}
    borders = sum(one.borders for one in scores)
    return {
        "films": len(scores),
        **shares,
        "all_four": float(np.mean([all(getattr(one, name) for name in ATTRIBUTES) for one in scores])),
        "whole": float(np.mean([one.whole for one in scores])),
        "sharpness": float(np.mean([one.sharpness for one in scores])),
        "smooth_borders": sum(one.smooth for one in scores) / borders if borders else None,
    }


def jumps_of(path: np.ndarray) -> np.ndarray:
    """Return the object's step across each border between chunks, relative to its usual step in both chunks.

    The usual step is the median, so that a jump within a chunk does not hide one at the border, plus the error of
    centres. `path`: [frames, 2] of a picture 64 high, NaN without an object; then the border counts as infinite.
    """
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    jumps = []
    for border in range(FRAMES_PER_CHUNK, len(path), FRAMES_PER_CHUNK):
        before = steps[border - FRAMES_PER_CHUNK : border - 1]
        within = np.concatenate([before, steps[border : border + FRAMES_PER_CHUNK - 1]])
        steps_seen = within[~np.isnan(within)]
        usual = min(float(np.median(steps_seen)) if len(steps_seen) else 0.0, FASTEST) + READING_ERROR / JUMP
        jumps.append(np.inf if np.isnan(steps[border - 1]) else steps[border - 1] / usual)
    return np.array(jumps)


@dataclass(frozen=True)
class Change:
    """The way a film follows its second shot's prompt.

    Attributes:
        held: whether every chunk before the second shot shows the first prompt's background and colour.
        chunks: chunks from the second shot's start until one shows its prompt's background and colour; None: never.
        stayed: whether all chunks from then on do.
    """

    held: bool
    chunks: int | None
    stayed: bool


def change(frames: np.ndarray, before: Attributes, after: Attributes, start: int) -> Change:
    """Judge how a film, uint8 [frames, height, width, 3], changes its prompt at `start`, the first frame of a chunk."""
    looks = [look(frames[at : at + FRAMES_PER_CHUNK]) for at in range(0, len(frames), FRAMES_PER_CHUNK)]
    shown = [(one.scene, one.names()[0]) for one in looks]
    first, second = shown[: start // FRAMES_PER_CHUNK], shown[start // FRAMES_PER_CHUNK :]
    right = [one == (after.background, after.colour) for one in second]
    chunks = right.index(True) if any(right) else None
    held = all(one == (before.background, before.colour) for one in first)
    return Change(held, chunks, chunks is not None and all(right[chunks:]))


def changes(films: Sequence[Change], due: int) -> dict[str, float]:
    """Return the shares of films that hold their first prompt, show the second one within `due` chunks, and keep it."""
    return {
        "films": len(films),
        "held": float(np.mean([film.held for film in films])),
        "in_time": float(np.mean([film.chunks is not None and film.chunks <= due for film in films])),
        "stayed": float(np.mean([film.stayed for film in films])),
    }


@dataclass(frozen=True)
class Lasting:
    """The quality of a long film over its length.

    Attributes:
        seconds: length of the film.
        drift_percent: largest change of a channel of the background's mean colour from the first 10 seconds to the
            last, in percent of 255; `worst_drift_percent`: to any other 10 seconds. In a film shorter than 20 seconds,
            from its first half to its second.
        whole: share of the frames with an object in one piece.
        same_colour, same_shape: share of the chunks whose object has the colour or shape of the first chunk.
        borders: number of borders between chunks; `smooth_borders`: share crossed without a jump.
        restarts: number of chunks that jump back and repeat the path of the first one.
        sharpness: as in Score, over the whole film; `last_sharpness` in its last 10 seconds.
    """

    seconds: float
    drift_percent: float
    worst_drift_percent: float
    whole: float
    same_colour: float
    same_shape: float
    borders: int
    smooth_borders: float
    restarts: int
    sharpness: float
    last_sharpness: float


class Watcher:
    """Measures a film of any length as its frames arrive, and keeps a few numbers per frame."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._looks: list[Look] = []

    def write(self, frames: np.ndarray) -> None:
        """Take frames, uint8 [frames, height, width, 3]."""
        self._waiting.extend(frames)
        while len(self._waiting) >= FRAMES_PER_CHUNK:
            self._look(FRAMES_PER_CHUNK)

    def result(self, fps: float = DEFAULT_FPS) -> Lasting:
        """Return the result, once all frames have arrived: at least one."""
        if self._waiting:
            self._look(len(self._waiting))
        film = joined(self._looks)
        path, backdrop = film.centre, film.backdrop
        span = max(1, min(round(SPAN_SECONDS * fps), len(backdrop) // 2))
        start = backdrop[:span].mean(axis=0)
        spans = [backdrop[at : at + span].mean(axis=0) for at in range(span, len(backdrop) - span + 1, span)]
        drifts = [float(np.abs(later - start).max()) / 2.55 for later in [*spans, backdrop[-span:].mean(axis=0)]]
        jumps = jumps_of(path)
        colours, shapes = zip(*(one.names() for one in self._looks), strict=True)
        return Lasting(
            seconds=len(path) / fps,
            drift_percent=drifts[-1],
            worst_drift_percent=max(drifts),
            whole=float(film.whole.mean()),
            same_colour=_share_of(colours, colours[0]),
            same_shape=_share_of(shapes, shapes[0]),
            borders=len(jumps),
            smooth_borders=float((jumps <= JUMP).mean()) if len(jumps) else 1.0,
            restarts=_restarts(path, jumps),
            sharpness=float(film.edge.mean()),
            last_sharpness=float(film.edge[-span:].mean()),
        )

    def _look(self, count: int) -> None:
        self._looks.append(look(np.stack(self._waiting[:count])))
        del self._waiting[:count]


def _share_of(names: Sequence[str | None], first: str | None) -> float:
    """Return the share of names equal to the first one; a missing object never counts."""
    return 0.0 if first is None else names.count(first) / len(names)


def _restarts(path: np.ndarray, jumps: np.ndarray) -> int:
    """Count the chunks after a jump in which the object repeats the path of the first chunk."""
    first, count = path[:FRAMES_PER_CHUNK], 0
    for number in np.flatnonzero(jumps > JUMP) + 1:
        chunk = path[number * FRAMES_PER_CHUNK : (number + 1) * FRAMES_PER_CHUNK]
        apart = np.linalg.norm(chunk - first[: len(chunk)], axis=1)
        count += bool(np.nanmean(apart) < SAME_PATH) if not np.isnan(apart).all() else 0
    return count


def lasting(films: Iterable[Lasting]) -> dict[str, float]:
    """Summarise several long films: the worst drift, all restarts, means of the rest."""
    rows = [asdict(film) for film in films]
    together = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    worst = {name: max(row[name] for row in rows) for name in ("drift_percent", "worst_drift_percent")}
    sums = {name: sum(row[name] for row in rows) for name in ("borders", "restarts")}
    return {"films": len(rows), **together, **worst, **sums}
