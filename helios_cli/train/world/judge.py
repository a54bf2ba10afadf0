"""Score films of the toy world: what they show against what their prompts say, and how well long films last.

Films arrive as frames; nothing here renders. Everything is read from pixels by `world.measure`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from helios_cli.train.world.grammar import Attributes
from helios_cli.train.world.measure import Look, colour_name, look, read
from helios_cli.train.world.palette import SHAPES
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK

SPAN_SECONDS = 10
"""Length of the first and the last part of a film whose backgrounds are compared."""

JUMP = 2.0
"""Times the usual step that an object may go from one chunk to the next."""

READING_ERROR = 0.5
"""Pixels by which the centre of an object is misread now and then; a resting object has a usual step of none."""

FASTEST = 8.5
"""Pixels a frame, of a picture 64 high: no object of the world is faster, so a usual step is none longer."""

SAME_PATH = 3.0
"""Pixels, mean over a chunk, within which a path is that of the start again."""


@dataclass(frozen=True)
class Score:
    """One film against its prompt.

    Attributes:
        background, colour, shape, motion: whether each is as the prompt says.
        whole: share of the frames with an object in one piece.
        sharpness: 1 / width of the object's outline in pixels.
        borders: of chunks; `smooth` of them the object crosses without a jump.
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
    """Scores a film, uint8 [frames, height, width, 3], that begins with a prompt of these attributes."""
    seen = read(frames)
    jumps = jumps_of(seen.path)
    return Score(
        **{name: getattr(seen, name) == getattr(expected, name) for name in ATTRIBUTES},
        whole=seen.whole,
        sharpness=seen.sharpness,
        borders=len(jumps),
        smooth=int((jumps <= JUMP).sum()),
    )


def adherence(scores: Sequence[Score]) -> dict[str, float | None]:
    """Shares of films with the right background, colour, shape and motion, and the means of the rest.

    `smooth_borders` is None if all films are of one chunk.
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
    """The object's step across each border between chunks over its usual step in the two chunks beside it.

    The usual step is their median, so that no jump within a chunk excuses one between two, plus what centres are
    misread by. `path`: [frames, 2] of a picture 64 high, NaN where no object is seen; a border at which none is seen is
    infinitely far.
    """
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    jumps = []
    for border in range(FRAMES_PER_CHUNK, len(path), FRAMES_PER_CHUNK):
        before = steps[border - FRAMES_PER_CHUNK : border - 1]
        within = np.concatenate([before, steps[border : border + FRAMES_PER_CHUNK - 1]])
        known = within[~np.isnan(within)]
        usual = min(float(np.median(known)) if len(known) else 0.0, FASTEST) + READING_ERROR / JUMP
        jumps.append(np.inf if np.isnan(steps[border - 1]) else steps[border - 1] / usual)
    return np.array(jumps)


@dataclass(frozen=True)
class Change:
    """A film whose second shot has another prompt.

    Attributes:
        held: whether every chunk before the second shot shows the first one's background and colour.
        chunks: from the second shot's start until one shows the background and the colour of its prompt; None: never.
        stayed: whether all chunks from then on do.
    """

    held: bool
    chunks: int | None
    stayed: bool


def change(frames: np.ndarray, before: Attributes, after: Attributes, start: int) -> Change:
    """How a film, uint8 [frames, height, width, 3], goes to another prompt at frame `start`, the first of a chunk."""
    seen = [look(frames[at : at + FRAMES_PER_CHUNK]) for at in range(0, len(frames), FRAMES_PER_CHUNK)]
    shown = [(one.scene, _names(one)[0]) for one in seen]
    first, second = shown[: start // FRAMES_PER_CHUNK], shown[start // FRAMES_PER_CHUNK :]
    right = [one == (after.background, after.colour) for one in second]
    chunks = right.index(True) if any(right) else None
    held = all(one == (before.background, before.colour) for one in first)
    return Change(held, chunks, chunks is not None and all(right[chunks:]))


def changes(films: Sequence[Change], due: int) -> dict[str, float]:
    """Shares of films that keep their first prompt while it is in force, show the second one `due` chunks after it has
    begun at the latest, and go on with it."""
    return {
        "films": len(films),
        "held": float(np.mean([film.held for film in films])),
        "in_time": float(np.mean([film.chunks is not None and film.chunks <= due for film in films])),
        "stayed": float(np.mean([film.stayed for film in films])),
    }


@dataclass(frozen=True)
class Lasting:
    """How a long film lasts.

    Attributes:
        seconds: its length.
        drift_percent: of 255, the greatest change of a channel of the background's mean colour from the film's first 10
            seconds to its last; `worst_drift_percent` from the first 10 seconds to any other. In a film of less than 20
            seconds, from its first half to its second.
        whole: share of the frames with an object in one piece.
        same_colour: share of the chunks whose object has the colour that it began with; `same_shape` likewise.
        borders: of chunks; `smooth_borders` is the share that the object crosses without a jump.
        restarts: chunks that jump back and then repeat the path of the first one.
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
    """Looks at a film of any length as its frames come, and keeps a few numbers a frame."""

    def __init__(self) -> None:
        self._waiting: list[np.ndarray] = []
        self._looks: list[Look] = []

    def write(self, frames: np.ndarray) -> None:
        """Takes uint8 [frames, height, width, 3]."""
        self._waiting.extend(frames)
        while len(self._waiting) >= FRAMES_PER_CHUNK:
            self._look(FRAMES_PER_CHUNK)

    def result(self, fps: float = DEFAULT_FPS) -> Lasting:
        """What was seen, once all frames are there: at least one."""
        if self._waiting:
            self._look(len(self._waiting))
        path, backdrop, whole, edge = (
            np.concatenate([getattr(one, name) for one in self._looks])
            for name in ("centre", "backdrop", "whole", "edge")
        )
        span = max(1, min(round(SPAN_SECONDS * fps), len(backdrop) // 2))
        start = backdrop[:span].mean(axis=0)
        spans = [backdrop[at : at + span].mean(axis=0) for at in range(span, len(backdrop) - span + 1, span)]
        drifts = [float(np.abs(later - start).max()) / 2.55 for later in [*spans, backdrop[-span:].mean(axis=0)]]
        jumps = jumps_of(path)
        colours, shapes = zip(*(_names(one) for one in self._looks), strict=True)
        return Lasting(
            seconds=len(path) / fps,
            drift_percent=drifts[-1],
            worst_drift_percent=max(drifts),
            whole=float(whole.mean()),
            same_colour=_share_of(colours, colours[0]),
            same_shape=_share_of(shapes, shapes[0]),
            borders=len(jumps),
            smooth_borders=float((jumps <= JUMP).mean()) if len(jumps) else 1.0,
            restarts=_restarts(path, jumps),
            sharpness=float(edge.mean()),
            last_sharpness=float(edge[-span:].mean()),
        )

    def _look(self, count: int) -> None:
        self._looks.append(look(np.stack(self._waiting[:count])))
        del self._waiting[:count]


def _names(seen: Look) -> tuple[str | None, str | None]:
    """Colour and shape of a chunk's object."""
    there = ~np.isnan(seen.centre[:, 0])
    if there.mean() < 0.5:
        return None, None
    return colour_name(np.median(seen.rgb[there], axis=0)), SHAPES[int(seen.match[there].mean(axis=0).argmax())]


def _share_of(names: Sequence[str | None], first: str | None) -> float:
    """How many of the names are the first one; what is not seen is never the same."""
    return 0.0 if first is None else names.count(first) / len(names)


def _restarts(path: np.ndarray, jumps: np.ndarray) -> int:
    """Chunks behind a jump in which the object goes the way of the first chunk."""
    first, count = path[:FRAMES_PER_CHUNK], 0
    for number in np.flatnonzero(jumps > JUMP) + 1:
        chunk = path[number * FRAMES_PER_CHUNK : (number + 1) * FRAMES_PER_CHUNK]
        apart = np.linalg.norm(chunk - first[: len(chunk)], axis=1)
        count += bool(np.nanmean(apart) < SAME_PATH) if not np.isnan(apart).all() else 0
    return count


def lasting(films: Iterable[Lasting]) -> dict[str, float]:
    """Several long films together: the worst drift, all restarts, the means of the rest."""
    rows = [asdict(film) for film in films]
    together = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    worst = {name: max(row[name] for row in rows) for name in ("drift_percent", "worst_drift_percent")}
    sums = {name: sum(row[name] for row in rows) for name in ("borders", "restarts")}
    return {"films": len(rows), **together, **worst, **sums}
