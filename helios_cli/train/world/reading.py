"""Reading what a film shows from its pixels alone: the background, and the object's colour, shape, path and motion.

It reads films of the toy world almost without error, and tolerates those of a model: colours a little off, soft or
wobbly outlines. It knows nothing else about the scene.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from helios_cli.train.world.draw import distance
from helios_cli.train.world.palette import COLOURS, SHAPES
from helios_cli.train.world.trajectory import HEIGHT
from helios_cli.units import FRAMES_PER_CHUNK

MIN_CONTRAST = 40.0
"""Smallest distance in RGB levels between an object and the background."""

AREA = (180.0, 1100.0)
"""Smallest and largest area of an object in a picture 64 pixels high."""

WHOLE_MATCH = 0.72
"""Smallest overlap of a whole object with the outline of one of the shapes."""

WHOLE_SHARE = 0.8
"""Smallest share of the pixels unlike the background that a whole object holds."""


STILL = 7.0
"""Pixels from end to end that a resting object may wobble, in a picture 64 high."""

REVERSAL = 5.0
"""Pixels that a path must go back to count as a turn."""


@dataclass(frozen=True)
class Look:
    """Measurements of each frame.

    Attributes:
        backdrop: float32 [frames, 3], mean colour of the background.
        centre: float32 [frames, 2], x and y of the object in pixels; NaN without an object.
        rgb: float32 [frames, 3], the object's colour; NaN without an object.
        match: float32 [frames, 4], overlap with each of SHAPES at its best size and place, 0 to 1.
        whole: bool [frames], an object in one piece with the outline of a shape.
        edge: float32 [frames], slope of the outline relative to its contrast, 1 / its width; 0 without an object.
        scene: name of the background as a whole.
    """

    backdrop: np.ndarray
    centre: np.ndarray
    rgb: np.ndarray
    match: np.ndarray
    whole: np.ndarray
    edge: np.ndarray
    scene: str

    def names(self) -> tuple[str | None, str | None]:
        """Return the object's colour and shape; None where less than half of the frames show one."""
        present = ~np.isnan(self.centre[:, 0])
        if present.mean() < 0.5:
            return None, None
        shape = SHAPES[int(self.match[present].mean(axis=0).argmax())]
        return colour_name(np.median(self.rgb[present], axis=0)), shape


@dataclass(frozen=True)
class Reading:
    """A film in the terms of a caption; None for attributes of an object that less than half of the frames show.

    Attributes:
        background: one of palette.BACKGROUNDS.
        colour, shape, motion: attributes of the object; the motion is that of the first chunk.
        path: float32 [frames, 2], the object's centre in pixels; NaN without an object.
        whole: share of the frames that show an object in one piece.
        sharpness: 1 / width of the outline in pixels, mean over the frames; 0 without an object.
        backdrop: float32 [frames, 3], mean colour of the background.
    """

    background: str
    colour: str | None
    shape: str | None
    motion: str | None
    path: np.ndarray
    whole: float
    sharpness: float
    backdrop: np.ndarray


def read(frames: np.ndarray) -> Reading:
    """Read a film, uint8 [frames, height, width, 3], twice as wide as high."""
    film = joined([look(frames[at : at + FRAMES_PER_CHUNK]) for at in range(0, len(frames), FRAMES_PER_CHUNK)])
    colour, shape = film.names()
    if colour is None:
        return Reading(film.scene, None, None, None, film.centre, 0.0, 0.0, film.backdrop)
    first = film.centre[:FRAMES_PER_CHUNK]
    moves = (~np.isnan(first[:, 0])).mean() >= 0.5
    return Reading(
        background=film.scene,
        colour=colour,
        shape=shape,
        motion=motion_of(first * (HEIGHT / frames.shape[1])) if moves else None,
        path=film.centre,
        whole=float(film.whole.mean()),
        sharpness=float(film.edge[~np.isnan(film.centre[:, 0])].mean()),
        backdrop=film.backdrop,
    )


def joined(looks: Sequence[Look]) -> Look:
    """Join the looks at consecutive parts of a film; the scene is that of the first part."""
    arrays = (field.name for field in fields(Look) if field.name != "scene")
    return Look(
        **{name: np.concatenate([getattr(one, name) for one in looks]) for name in arrays}, scene=looks[0].scene
    )


def look(frames: np.ndarray) -> Look:
    """Measure up to some dozens of frames, uint8 [frames, height, width, 3]."""
    levels = frames.astype(np.float32)
    scale = frames.shape[1] / HEIGHT
    rows = np.median(levels[:, :, ::2], axis=2)  # an object is narrower than half of the picture
    scene = background_name(np.median(rows, axis=0))
    contrast = _contrast(levels, rows, scene)
    piece, strength, one_piece = _object(contrast, scale)
    area = piece.sum(axis=(1, 2)) / scale**2
    there = (area > AREA[0]) & (area < AREA[1])
    centre = _centre(piece)
    match = _match(piece, centre, np.sqrt(np.maximum(area, 1) / np.pi) * scale)
    rgb = _mean_where(levels, piece > 0.8)
    backdrop = _mean_where(levels, contrast < MIN_CONTRAST / 2)
    missing = ~there[:, None]
    return Look(
        backdrop=backdrop,
        centre=np.where(missing, np.nan, centre).astype(np.float32),
        rgb=np.where(missing, np.nan, rgb),
        match=match,
        whole=there & (match.max(axis=1) > WHOLE_MATCH) & (one_piece > WHOLE_SHARE),
        edge=np.where(there, _edge(contrast, piece, strength), 0),
        scene=scene,
    )


def _mean_where(levels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean colour of the pixels in `mask` in each frame, float32 [frames, 3]; 0 without any."""
    share = mask / np.maximum(mask.sum(axis=(1, 2), keepdims=True), 1).astype(np.float32)
    return np.einsum("tyx,tyxc->tc", share, levels)


# -- colours --


def _lab(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB levels [..., 3] to CIELAB with lightness halved, so that shading does not change a name."""
    light = np.clip(np.asarray(rgb, np.float64) / 255, 0, 1)
    light = np.where(light > 0.04045, ((light + 0.055) / 1.055) ** 2.4, light / 12.92)
    xyz = light @ np.array([[0.4339, 0.2126, 0.0178], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8730]])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([0.5 * (116 * y - 16), 500 * (x - y), 200 * (y - z)], axis=-1)


_NAMES = tuple(COLOURS)
_PALETTE = _lab(np.array(list(COLOURS.values())))
_NIGHT = _lab(np.array([[22, 26, 65]]))
_SKY = _lab(np.array([[170, 214, 246]]))


def colour_name(rgb: np.ndarray) -> str:
    """Return the name that is nearest to sRGB levels [3]."""
    return _NAMES[int(np.linalg.norm(_PALETTE - _lab(rgb), axis=-1).argmin())]


def background_name(rows: np.ndarray) -> str:
    """Name a background by the colours of its rows from top to bottom, levels [height, 3]."""
    part = len(rows) // 5
    top, bottom = np.median(rows[:part], axis=0), np.median(rows[-part:], axis=0)
    below = colour_name(bottom)
    if _nearest_is(_SKY, top) and below in ("green", "blue"):
        return "hills" if below == "green" else "sea"
    middle = np.median(rows, axis=0)
    return "night" if _nearest_is(_NIGHT, middle) else colour_name(middle)


def _nearest_is(one: np.ndarray, rgb: np.ndarray) -> bool:
    lab = _lab(rgb)
    return bool(np.linalg.norm(one - lab) < np.linalg.norm(_PALETTE - lab, axis=-1).min())


# -- object and background --


def _contrast(levels: np.ndarray, rows: np.ndarray, scene: str) -> np.ndarray:
    """Return each pixel's distance from the background, float32 [frames, height, width]."""
    if scene in ("hills", "sea"):
        reach = levels.shape[1] // 4 if scene == "hills" else 2
        padded = np.pad(rows, ((0, 0), (reach, reach), (0, 0)), mode="edge")
        behind = [padded[:, at : at + rows.shape[1], None] for at in range(0, 2 * reach + 1, 2)]
        squared = functools.reduce(np.minimum, (_squared(levels - colour) for colour in behind))
        return np.sqrt(squared)
    return np.sqrt(_squared(levels - _smooth_background(levels, rows)))


def _smooth_background(levels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Fit a surface of second degree to the background pixels of each frame."""
    frames, height, width, _ = levels.shape
    few = levels[:, ::2, ::2]
    y, x = (np.linspace(-1, 1, count) for count in (height, width))
    basis = np.stack(np.broadcast_arrays(1.0, x[None], y[:, None], x[None] ** 2, y[:, None] ** 2), axis=-1)
    basis = basis.astype(np.float32)
    inner = basis[::2, ::2].reshape(-1, 5)
    points = few.reshape(frames, -1, 3)
    away = _squared(few - rows[:, ::2, None]).reshape(frames, -1)
    for _ in range(6):
        weight = 1 / (1 + (away / 12**2) ** 2)
        weighted = (inner * weight[..., None]).transpose(0, 2, 1)
        coefficients = np.linalg.solve(weighted @ inner + 1e-3 * np.eye(5, dtype=np.float32), weighted @ points)
        away = _squared(points - inner @ coefficients)
    return (basis.reshape(-1, 5) @ coefficients).reshape(levels.shape)


def _squared(differences: np.ndarray) -> np.ndarray:
    """Return the squared lengths of vectors along the last axis."""
    return np.einsum("...c,...c->...", differences, differences)


def _object(contrast: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the object in each frame.

    Returns:
        The covered share of each pixel, float32 [frames, height, width]; the object's contrast [frames]; and its share
        of all pixels of such contrast [frames].
    """
    soft = _box(contrast, 3)
    size = 2 * int(6 * scale) + 1
    dense = _box(np.minimum(soft, 160), size)  # a bright speck counts no more than an object
    frames = np.arange(len(contrast))
    seed = dense.reshape(len(contrast), -1).argmax(axis=1)
    row, column = np.unravel_index(seed, contrast.shape[1:])
    strength = np.maximum(_box(soft, 9)[frames, row, column], MIN_CONTRAST)
    share = np.clip(contrast / strength[:, None, None], 0, 1)
    mask = soft > 0.5 * strength[:, None, None]
    grown = np.zeros_like(mask)
    half = size // 4
    for frame, y, x in zip(frames, row, column, strict=True):
        near = (frame, slice(max(0, y - half), y + half + 1), slice(max(0, x - half), x + half + 1))
        grown[near] = mask[near]
    count = -1
    while (now := int(grown.sum())) != count:
        count = now
        grown = _spread(grown) & mask
    alike = mask & (soft < 1.5 * strength[:, None, None])  # the moon behind a dark object is no part of it
    one_piece = (grown & alike).sum(axis=(1, 2)) / np.maximum(alike.sum(axis=(1, 2)), 1)
    outline = _spread(grown)
    return np.where(outline, share, 0).astype(np.float32), strength, one_piece


def _box(values: np.ndarray, size: int) -> np.ndarray:
    """Return the means over squares of `size` pixels, an odd number, in each frame; edges are repeated outwards."""
    half = size // 2
    for axis in (1, 2):
        pad = [(0, 0), (0, 0), (0, 0)]
        pad[axis] = (half + 1, half)
        sums = np.cumsum(np.pad(values, pad, mode="edge"), axis=axis)
        ahead, behind = (slice(size, None), slice(None, -size))
        values = sums[:, ahead] - sums[:, behind] if axis == 1 else sums[:, :, ahead] - sums[:, :, behind]
        values /= size
    return values


def _spread(mask: np.ndarray) -> np.ndarray:
    """Grow a mask by one pixel in all eight directions."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    tall = wide.copy()
    tall[:, :, 1:] |= wide[:, :, :-1]
    tall[:, :, :-1] |= wide[:, :, 1:]
    return tall


# -- outlines --

_GRID = 25
_SPAN = 1.9
"""Half the side of the square in which outlines are compared, in radii of a circle of the object's area."""


_LARGE = 40
"""Radius in pixels of the shapes that the templates are made from."""

_ROUNDINGS = (1, 15, 21)
"""Widths in pixels over which corners are rounded: none, and as by a decoder that smears small detail."""


@functools.lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """Make each of SHAPES with several corners, edges, sizes and places, float32 [shapes, variants, cells]."""
    steps = (np.arange(-2 * _LARGE, 2 * _LARGE + 1) / _LARGE).astype(np.float32)
    made = []
    for shape in SHAPES:
        filled = (distance(shape, steps[None, :], steps[:, None]) < 0).astype(np.float32)[None]
        variants = []
        for rounding in _ROUNDINGS:
            rounded = (_box(_box(_box(filled, rounding), rounding), rounding) > 0.5).astype(np.float32)
            for soft in (5, 13):
                piece = _box(_box(rounded, soft), soft)
                centre, area = _centre(piece), piece.sum(axis=(1, 2))
                for size in (0.94, 1.0, 1.06):
                    radius = np.sqrt(area / np.pi) * size
                    for shift in ((0, 0), (-0.08, 0), (0.08, 0), (0, -0.08), (0, 0.08)):
                        variants.append(_sampled(piece, centre + np.array(shift) * radius, radius)[0])
        made.append(variants)
    return np.array(made, np.float32)


def _centre(piece: np.ndarray) -> np.ndarray:
    """Return the centroid of what is covered in each frame, x and y in pixels, [frames, 2]."""
    weight = piece / np.maximum(piece.sum(axis=(1, 2), keepdims=True), 1e-6)
    x, y = (np.arange(piece.shape[axis]) + 0.5 for axis in (2, 1))
    return np.stack([weight.sum(axis=1) @ x, weight.sum(axis=2) @ y], axis=-1)


def _sampled(piece: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Sample the cells of a square around the object in each frame, between pixels, float32 [frames, cells]."""
    frames, height, width = piece.shape
    cells = np.linspace(-_SPAN, _SPAN, _GRID)
    columns = centre[:, :1] - 0.5 + cells * radius[:, None]
    rows = centre[:, 1:] - 0.5 + cells * radius[:, None]
    column, row = np.floor(columns).astype(int), np.floor(rows).astype(int)
    right, down = (columns - column)[:, None, :], (rows - row)[:, :, None]
    framed = np.pad(piece, ((0, 0), (1, 1), (1, 1)))
    at = np.arange(frames)[:, None, None]

    def corner(below: int, beside: int) -> np.ndarray:
        y, x = np.clip(row + below + 1, 0, height + 1), np.clip(column + beside + 1, 0, width + 1)
        return framed[at, y[:, :, None], x[:, None, :]]

    above = corner(0, 0) * (1 - right) + corner(0, 1) * right
    under = corner(1, 0) * (1 - right) + corner(1, 1) * right
    return (above * (1 - down) + under * down).reshape(frames, -1).astype(np.float32)


def _match(piece: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Return the overlap of each frame's object with the best variant of each of SHAPES: shared over joint area."""
    seen = _sampled(piece, centre, radius)[:, None]
    best = []
    for variants in _templates():
        shared = np.minimum(seen, variants).sum(axis=-1)
        best.append((shared / (seen.sum(axis=-1) + variants.sum(axis=-1) - shared)).max(axis=-1))
    return np.stack(best, axis=-1)


def _edge(contrast: np.ndarray, piece: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return the mean slope across the outline, relative to the object's contrast."""
    share = np.clip(contrast / strength[:, None, None], 0, 1)
    down, right = np.gradient(share, axis=(1, 2))
    slope = np.hypot(down, right)
    inside = piece > 0.5
    outline = _spread(inside) & _spread(~inside)
    return (slope * outline).sum(axis=(1, 2)) / np.maximum(outline.sum(axis=(1, 2)), 1)


# -- motion --


def motion_of(path: np.ndarray) -> str:
    """Name the motion of a path [frames, 2] with NaN where there is no object; at least one frame has one."""
    path = _smooth(_filled(np.asarray(path, np.float64)))
    width, height = np.ptp(path, axis=0)
    if max(width, height) < STILL:
        return "still"
    if width < 0.75 * height and _reversals(path[:, 1]) >= 2:  # more than half of an orbit is wider
        return "bouncing"
    if min(width, height) > 9 and abs(_turning(path)) > 110:
        return "circling"
    right, down = path[-1] - path[0]
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def _filled(path: np.ndarray) -> np.ndarray:
    """Fill gaps with straight lines."""
    seen = ~np.isnan(path[:, 0])
    at = np.arange(len(path))
    return np.stack([np.interp(at, at[seen], path[seen, axis]) for axis in (0, 1)], axis=-1)


def _smooth(path: np.ndarray) -> np.ndarray:
    """Take medians of three frames, then means of three, so that one misread frame has no effect."""
    framed = np.pad(path, ((1, 1), (0, 0)), mode="edge")
    path = np.median(np.stack([framed[:-2], framed[1:-1], framed[2:]]), axis=0)
    framed = np.pad(path, ((1, 1), (0, 0)), mode="edge")
    return (framed[:-2] + framed[1:-1] + framed[2:]) / 3


def _turning(path: np.ndarray) -> float:
    """Return the total turn of the direction in degrees, clockwise positive, in steps of four frames."""
    steps = path[4:] - path[:-4]
    angles = np.arctan2(steps[:, 1], steps[:, 0])
    changes = (np.diff(angles) + np.pi) % (2 * np.pi) - np.pi
    clear = np.linalg.norm(steps, axis=1) > 1.5
    return float(np.degrees(changes[clear[1:] & clear[:-1]].sum()))


def _reversals(values: np.ndarray) -> int:
    """Count how often values turn back by more than REVERSAL."""
    count, extreme, rising = 0, values[0], None
    low = high = values[0]
    for value in values[1:]:
        low, high = min(low, value), max(high, value)
        if rising is None:
            if high - low > REVERSAL:
                rising = value == high
                extreme = value
        elif (value > extreme) == rising:
            extreme = value
        elif abs(value - extreme) > REVERSAL:
            count, extreme, rising = count + 1, value, not rising
    return count
