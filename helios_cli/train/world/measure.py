"""What a film shows, read from its pixels alone: background, object, its colour, shape and path.

Made for the toy world, whose films it reads almost without fault, and for what a model makes of it: colours a little
off, soft or wobbly outlines. Nothing about the scene is given to it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from helios_cli.train.world.draw import distance
from helios_cli.train.world.motion import motion_of
from helios_cli.train.world.palette import COLOURS, SHAPES
from helios_cli.train.world.tracks import HEIGHT
from helios_cli.units import FRAMES_PER_CHUNK

MIN_CONTRAST = 40.0
"""Levels, as a distance in RGB, that an object differs from what is behind it."""

AREA = (180.0, 1100.0)
"""Least and greatest area of an object in a picture 64 pixels high."""

WHOLE_MATCH = 0.72
"""Least overlap with the outline of one of the shapes."""

WHOLE_SHARE = 0.8
"""Least share of all that differs from the background that is in one piece."""


@dataclass(frozen=True)
class Look:
    """Frames one by one.

    Attributes:
        backdrop: float32 [frames, 3], mean colour of the background.
        centre: float32 [frames, 2], x and y of the object in pixels; NaN where there is none.
        rgb: float32 [frames, 3], the object's colour; NaN where there is none.
        match: float32 [frames, 4], overlap with each of SHAPES at its best size and place, 0 to 1.
        whole: bool [frames], an object in one piece with the outline of a shape.
        edge: float32 [frames], slope of the outline as a share of its contrast a pixel, 1 / its width; 0 without one.
        scene: name of the background as a whole.
    """

    backdrop: np.ndarray
    centre: np.ndarray
    rgb: np.ndarray
    match: np.ndarray
    whole: np.ndarray
    edge: np.ndarray
    scene: str


@dataclass(frozen=True)
class Reading:
    """A film read as a caption would say it; None for what is not there, or in less than half of the frames.

    Attributes:
        background: one of palette.BACKGROUNDS.
        colour: of the object; shape and motion likewise. The motion is that of the first chunk.
        path: float32 [frames, 2], the object's centre in pixels, NaN where there is none.
        whole: share of the frames that hold an object in one piece.
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

    @property
    def present(self) -> bool:
        """Whether at least half of the frames show an object."""
        return self.colour is not None


def read(frames: np.ndarray) -> Reading:
    """Reads a film, uint8 [frames, height, width, 3], twice as wide as high."""
    looks = [look(frames[at : at + FRAMES_PER_CHUNK]) for at in range(0, len(frames), FRAMES_PER_CHUNK)]
    path = np.concatenate([one.centre for one in looks])
    backdrop = np.concatenate([one.backdrop for one in looks])
    seen = ~np.isnan(path[:, 0])
    if seen.mean() < 0.5:
        return Reading(looks[0].scene, None, None, None, path, 0.0, 0.0, backdrop)
    first = path[:FRAMES_PER_CHUNK]
    rgb = np.concatenate([one.rgb for one in looks])[seen]
    match = np.concatenate([one.match for one in looks])[seen]
    return Reading(
        background=looks[0].scene,
        colour=colour_name(np.median(rgb, axis=0)),
        shape=SHAPES[int(match.mean(axis=0).argmax())],
        motion=motion_of(first * (HEIGHT / frames.shape[1])) if seen[:FRAMES_PER_CHUNK].mean() >= 0.5 else None,
        path=path,
        whole=float(np.concatenate([one.whole for one in looks]).mean()),
        sharpness=float(np.concatenate([one.edge for one in looks])[seen].mean()),
        backdrop=backdrop,
    )


def look(frames: np.ndarray) -> Look:
    """Looks at some dozens of frames at most, uint8 [frames, height, width, 3]."""
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
    """Mean colour in each frame, float32 [frames, 3], of the pixels in `mask`; 0 where there are none."""
    share = mask / np.maximum(mask.sum(axis=(1, 2), keepdims=True), 1).astype(np.float32)
    return np.einsum("tyx,tyxc->tc", share, levels)


# -- colours --


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB levels [..., 3], lightness halved: shading does not change a colour's name."""
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
    """The name that is nearest to sRGB levels [3]."""
    return _NAMES[int(np.linalg.norm(_PALETTE - _lab(rgb), axis=-1).argmin())]


def background_name(rows: np.ndarray) -> str:
    """Names a background by the colours of its rows from top to bottom, levels [height, 3]."""
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
    """Distance of each pixel from the background, float32 [frames, height, width], smoothed over 3 x 3 pixels."""
    if scene in ("hills", "sea"):
        reach = levels.shape[1] // 4 if scene == "hills" else 2
        padded = np.pad(rows, ((0, 0), (reach, reach), (0, 0)), mode="edge")
        behind = [padded[:, at : at + rows.shape[1], None] for at in range(0, 2 * reach + 1, 2)]
        squared = functools.reduce(np.minimum, (_squared(levels - colour) for colour in behind))
        return np.sqrt(squared)
    return np.sqrt(_squared(levels - _smooth_background(levels, rows)))


def _smooth_background(levels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A surface of second degree through the pixels of each frame that are not the object's."""
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
        found = np.linalg.solve(weighted @ inner + 1e-3 * np.eye(5, dtype=np.float32), weighted @ points)
        away = _squared(points - inner @ found)
    return (basis.reshape(-1, 5) @ found).reshape(levels.shape)


def _squared(differences: np.ndarray) -> np.ndarray:
    """Squared lengths of vectors along the last axis."""
    return np.einsum("...c,...c->...", differences, differences)


def _object(contrast: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The object in each frame.

    Returns:
        How much of each pixel it covers, float32 [frames, height, width]; its contrast [frames]; and its share of all
        that differs from the background as much [frames].
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
    """Means over squares of `size` pixels, an odd number, in each frame; the edge is repeated outwards."""
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
    """A mask grown by one pixel in the eight directions."""
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
"""Half the side of the square that outlines are compared in, in radii of a circle of the object's area."""


_LARGE = 40
"""Radius in pixels of the shapes that templates are made from."""

_ROUNDINGS = (1, 15, 21)
"""Pixels of those that corners are rounded over: not at all, and as a decoder does that smears small detail."""


@functools.lru_cache(maxsize=1)
def _templates() -> np.ndarray:
    """Each of SHAPES with sharp and round corners, soft edges, sizes and places, float32 [shapes, variants, cells]."""
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
    """Middle of what is covered in each frame, x and y in pixels from the corner of the picture, [frames, 2]."""
    weight = piece / np.maximum(piece.sum(axis=(1, 2), keepdims=True), 1e-6)
    x, y = (np.arange(piece.shape[axis]) + 0.5 for axis in (2, 1))
    return np.stack([weight.sum(axis=1) @ x, weight.sum(axis=2) @ y], axis=-1)


def _sampled(piece: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The cells of a square around the object in each frame, between pixels, float32 [frames, cells]."""
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
    """Overlap of each frame's object with each of SHAPES: shared over joint area, of the best variant."""
    seen = _sampled(piece, centre, radius)[:, None]
    best = []
    for variants in _templates():
        shared = np.minimum(seen, variants).sum(axis=-1)
        best.append((shared / (seen.sum(axis=-1) + variants.sum(axis=-1) - shared)).max(axis=-1))
    return np.stack(best, axis=-1)


def _edge(contrast: np.ndarray, piece: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Mean slope across the outline, as a share of the object's contrast a pixel."""
    share = np.clip(contrast / strength[:, None, None], 0, 1)
    down, right = np.gradient(share, axis=(1, 2))
    slope = np.hypot(down, right)
    inside = piece > 0.5
    outline = _spread(inside) & _spread(~inside)
    return (slope * outline).sum(axis=(1, 2)) / np.maximum(outline.sum(axis=(1, 2)), 1)
