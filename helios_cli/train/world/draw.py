"""Drawing the pixels of a scene: outlines by signed distance, so that edges are smooth at any subpixel position."""

from __future__ import annotations

import functools

import numpy as np

from helios_cli.train.world.scene import Backdrop, Camera, Scene, Thing
from helios_cli.train.world.trajectory import EXTENT, HEIGHT, MIDDLE, WIDTH

FADE = 20
"""Frames in which a change of the scene is complete."""

WIDEST = 0.8
"""Size of objects when the camera has zoomed out."""

_STAR, _NOTCH = 1.41, 0.40
"""Distance of a star's points from its centre, and that of its notches as a share of it."""


def render(scene: Scene, frames: int, start: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return frames `start` to `start + frames` of a scene, uint8 [frames, height, width, 3]."""
    times = np.arange(start, start + frames)
    shares = _shares(scene, times)
    film = np.empty((frames, height, width, 3), np.uint8)
    _behind(film, scene, times, shares)
    zoom = _zoom(scene.segments[0].camera, times)
    scale = width / WIDTH, height / HEIGHT
    for number in reversed(range(len(scene.things))):
        things = [segment.things[number] for segment in scene.segments]
        places = np.einsum("tk,ktc->tc", shares, [thing.trajectory.at(times) for thing in things])
        places = MIDDLE + (places - MIDDLE) * zoom[:, None]
        _stamp(film, things, shares, places * scale, zoom * min(scale))
    return film


def _shares(scene: Scene, times: np.ndarray) -> np.ndarray:
    """Return the visible share of each segment, float32 [frames, segments]: each fades in over the one before."""
    shares = np.ones((len(times), 1), np.float32)
    for segment in scene.segments[1:]:
        way = np.clip((times - segment.start) / FADE, 0, 1).astype(np.float32)[:, None]
        new = way * way * (3 - 2 * way)
        shares = np.concatenate([shares * (1 - new), new], axis=1)
    return shares


def _zoom(camera: Camera | None, times: np.ndarray) -> np.ndarray:
    """Return the size of objects in the picture, [frames]: 1, or between 1 and WIDEST."""
    if camera is None or not camera.move.startswith("zoom"):
        return np.ones(len(times))
    away = 0.5 - 0.5 * np.cos(np.pi * times / camera.frames + (np.pi if camera.move == "zoom in" else 0))
    return 1 + (WIDEST - 1) * away


def _behind(film: np.ndarray, scene: Scene, times: np.ndarray, shares: np.ndarray) -> None:
    """Fill the film with its background."""
    _, height, width, _ = film.shape
    camera, nightfall = scene.segments[0].camera, scene.segments[0].nightfall
    zoom, pan = _zoom(camera, times), np.zeros(len(times))
    if camera and camera.move.startswith("pan"):
        pan = times * ((1 if camera.move == "pan right" else -1) * WIDTH / camera.frames)
    shown, picture = None, None
    for frame in range(len(film)):
        seen = (*shares[frame], zoom[frame], pan[frame], 0 if nightfall is None else times[frame])
        if seen != shown:
            shown = seen
            picture = sum(
                share * backdrop_picture(segment.backdrop, width, height, zoom[frame], pan[frame])
                for share, segment in zip(shares[frame], scene.segments, strict=True)
                if share > 0
            )
            if nightfall is not None:
                picture = picture * _daylight(times[frame], nightfall)
            picture = np.rint(picture)
        film[frame] = picture


def _daylight(time: int, nightfall: int) -> np.ndarray:
    """Return the factors of red, green and blue: 1 at the start, the dark of night `nightfall` frames later."""
    dark = 0.5 - 0.5 * np.cos(np.pi * time / nightfall)
    return 1 + (np.array([0.12, 0.16, 0.34], np.float32) - 1) * np.float32(dark)


def _stamp(film: np.ndarray, things: list[Thing], shares: np.ndarray, centres: np.ndarray, scale: np.ndarray) -> None:
    """Draw an object into every frame, within a box around it. While a segment fades in, the object is in between.

    Args:
        things: the object in each segment.
        shares: visible share of each segment, [frames, segments].
        centres: centres in pixels, [frames, 2].
        scale: pixels per unit of length, [frames].
    """
    height, width = film.shape[1:3]
    half = int(np.ceil(max(thing.radius for thing in things) * scale.max() * 1.5)) + 2
    corner = np.floor(centres).astype(int) - half
    steps = np.arange(2 * half + 1)
    columns, rows = corner[:, :1] + steps, corner[:, 1:] + steps
    scale = scale.astype(np.float32)[:, None, None]
    x = (columns + 0.5 - centres[:, :1]).astype(np.float32)[:, None, :] / scale
    y = (rows + 0.5 - centres[:, 1:]).astype(np.float32)[:, :, None] / scale
    away = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for thing, share in zip(things, shares.T, strict=True):
        away += share[:, None, None] * thing.radius * distance(thing.shape, x / thing.radius, y / thing.radius)
    cover = np.clip(0.5 - away * scale, 0, 1)
    radius = shares @ np.array([thing.radius for thing in things], np.float32)
    light = 1 - 0.10 * np.clip((x + y) / (2 * radius[:, None, None]), -1, 1)
    colour = shares @ np.array([thing.rgb for thing in things], np.float32)
    paint = np.clip(colour[:, None, None] * light[..., None], 0, 255)
    seen = ((columns >= 0) & (columns < width))[:, None, :] & ((rows >= 0) & (rows < height))[:, :, None]
    frame, row, column = np.nonzero(seen & (cover > 0))
    at = (frame, rows[frame, row], columns[frame, column])
    share = cover[frame, row, column][:, None]
    film[at] = np.rint(film[at] * (1 - share) + paint[frame, row, column] * share)


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to the outline of a shape of radius 1 around 0: negative inside, exact near edges.

    x and y broadcast; y points down. Triangle and star stand upright, the middle of their height at 0.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - EXTENT["square"][0]
    if shape == "triangle":
        half = EXTENT["triangle"][1]
        return np.maximum(y - half, 0.8660254 * np.abs(x) - 0.5 * (y + half))
    return _star(x, y - (_STAR - EXTENT["star"][1]))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mirror everything into a tenth of the turn, which holds one edge: a straight line from a point to a notch."""
    fifth = 2 * np.pi / 5
    angle = np.arctan2(x, -y)
    angle = np.abs((angle + fifth / 2) % fifth - fifth / 2)
    length = np.sqrt(x * x + y * y)
    along, across = length * np.cos(angle), length * np.sin(angle)
    tip = np.array([_STAR, 0.0])
    notch = _NOTCH * _STAR * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
    normal /= np.hypot(*normal)
    return ((along - tip[0]) * normal[0] + across * normal[1]).astype(np.float32)


@functools.lru_cache(maxsize=64)
def backdrop_picture(backdrop: Backdrop, width: int, height: int, zoom: float = 1.0, pan: float = 0.0) -> np.ndarray:
    """Return a background alone, float32 [height, width, 3], levels 0 to 255. `pan`: pixels to the right."""
    x = ((np.arange(width) + 0.5) * (WIDTH / width) - MIDDLE[0]) / zoom + MIDDLE[0] + pan
    y = ((np.arange(height) + 0.5) * (HEIGHT / height) - MIDDLE[1]) / zoom + MIDDLE[1]
    x, y = x.astype(np.float32)[None, :, None], y.astype(np.float32)[:, None, None]
    rgb = np.array(backdrop.rgb, np.float32)
    if backdrop.kind == "plain":
        return np.broadcast_to(rgb, (height, width, 3))
    if backdrop.kind == "gradient":
        slope = backdrop.slope[0] * (x / WIDTH - 0.5) + backdrop.slope[1] * (y / HEIGHT - 0.5)
        return np.where(slope > 0, rgb + (255 - rgb) * slope, rgb * (1 + slope))
    picture = {"hills": _hills, "sea": _sea, "night": _night}[backdrop.kind]
    return picture(np.random.default_rng(backdrop.seed), x, y)


def _mix(low: tuple[int, ...], high: tuple[int, ...], share: np.ndarray) -> np.ndarray:
    """Mix two colours, from `low` at 0 to `high` at 1."""
    share = np.clip(share, 0, 1)
    return np.array(low, np.float32) * (1 - share) + np.array(high, np.float32) * share


def _hills(dice: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draw two rows of green hills under a pale sky. They repeat every 128 pixels."""
    picture = _mix((118, 184, 240), (206, 232, 250), y / 34)
    turn = 2 * np.pi * x / WIDTH
    for base, rise, light, dark in ((30, 5, (132, 196, 104), (112, 182, 92)), (40, 5, (86, 168, 70), (52, 132, 52))):
        ridge = base + rise * (np.sin(turn + dice.uniform(0, 7)) + 0.5 * np.sin(2 * turn + dice.uniform(0, 7)))
        ground = _mix(light, dark, (y - base) / (HEIGHT - base))
        picture = picture + (ground - picture) * np.clip(y - ridge + 0.5, 0, 1)
    return picture


def _sea(dice: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draw a blue sea with long soft waves, up to a horizon under a bright sky."""
    horizon = dice.uniform(18, 24)
    sky = _mix((156, 208, 246), (232, 242, 250), y / horizon)
    water = _mix((54, 142, 214), (18, 78, 168), (y - horizon) / (HEIGHT - horizon))
    turn = 2 * np.pi * x / WIDTH
    waves = np.sin(y * 0.85 + 1.2 * np.sin(2 * turn + dice.uniform(0, 7))) * np.clip((y - horizon) / 12, 0, 1)
    water = water + 7 * waves
    return sky + (water - sky) * np.clip(y - horizon + 0.5, 0, 1)


def _night(dice: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draw a dark blue sky with a few stars and a small moon."""
    picture = _mix((9, 11, 38), (34, 40, 92), y / HEIGHT)
    for _ in range(dice.integers(9, 14)):
        across, down, size = dice.uniform(3, WIDTH - 3), dice.uniform(3, 50), dice.uniform(0.6, 1.1)
        glow = np.clip(size + 0.5 - np.hypot(_around(x - across), y - down), 0, 1) * 0.75
        picture = picture + (np.array([255, 250, 230], np.float32) - picture) * glow
    across, down = dice.uniform(12, WIDTH - 12), dice.uniform(8, 12)
    moon = np.clip(5 - np.hypot(_around(x - across), y - down) + 0.5, 0, 1)
    bite = np.clip(np.hypot(_around(x - across - 2.5), y - down + 1.5) - 4.5 + 0.5, 0, 1)
    return picture + (np.array([250, 240, 205], np.float32) - picture) * (moon * bite)


def _around(x: np.ndarray) -> np.ndarray:
    """Wrap a distance to the right, in a sky that repeats every 128 pixels."""
    return (x + WIDTH / 2) % WIDTH - WIDTH / 2
