"""Measurements from pixels against the scenes that were drawn: encoded, soft, noisy and bent ones too."""

from __future__ import annotations

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.train.world.captions import labels
from helios_cli.train.world.draw import backdrop_picture, render
from helios_cli.train.world.palette import COLOURS
from helios_cli.train.world.reading import Reading, colour_name, look, motion_of, read
from helios_cli.train.world.scene import Scene, draw_scene
from helios_cli.units import FRAMES_PER_CHUNK
from support.tiers import some

NAMES = ("background", "colour", "shape", "motion")


def scenes(count: int, first: int = 0) -> list[Scene]:
    seeds = range(first, first + count)
    return [draw_scene(seed, split="train" if seed % 2 else "held_out") for seed in seeds]


def shares_right(wanted: list[Scene], readings: list[Reading]) -> dict[str, float]:
    pairs = [(labels(scene.segments[0]), reading) for scene, reading in zip(wanted, readings, strict=True)]
    return {name: np.mean([getattr(said, name) == getattr(seen, name) for said, seen in pairs]) for name in NAMES}


def through_h264(film: np.ndarray, crf: int) -> np.ndarray:
    """The film as a player shows it."""
    size = f"{film.shape[2]}x{film.shape[1]}"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    encode = [*ffmpeg, *raw, "-s", size, "-r", "24", "-i", "-", "-c:v", "libx264", "-crf", str(crf)]
    encoded = subprocess.run(
        [*encode, "-preset", "veryfast", "-pix_fmt", "yuv420p", "-f", "matroska", "-"],
        input=film.tobytes(),
        capture_output=True,
        check=True,
    ).stdout
    decode = [*ffmpeg, "-i", "-", *raw, "-fps_mode", "passthrough", "-"]
    decoded = subprocess.run(decode, input=encoded, capture_output=True, check=True).stdout
    return np.frombuffer(decoded, np.uint8).reshape(film.shape)


@pytest.mark.slow
def test_films_of_the_world_are_read():
    """At least 98 of 100 of each attribute, after H.264; paths to within the distance of middle and centroid."""
    wanted = scenes(56)
    film = through_h264(np.concatenate([render(scene, FRAMES_PER_CHUNK) for scene in wanted]), crf=20)
    readings = [read(part) for part in np.split(film, len(wanted))]
    assert min(shares_right(wanted, readings).values()) >= 0.98
    assert np.mean([reading.whole for reading in readings]) > 0.99
    for scene, reading in zip(wanted, readings, strict=True):
        off = reading.path - scene.thing.trajectory.at(np.arange(FRAMES_PER_CHUNK))
        assert np.percentile(np.abs(off - np.median(off, axis=0)), 95) < 2.5
        # A triangle's centroid is below the middle of its height.
        assert np.abs(np.median(off, axis=0)).max() < (7 if scene.thing.shape == "triangle" else 2.5)


def blurred(film: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Three box filters of three pixels each way: edges over about five pixels."""
    for axis in (1, 2):
        for _ in range(3):
            film = (np.roll(film, 1, axis) + film + np.roll(film, -1, axis)) / 3
    return film


def noisy(film: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Fine noise and blotches of 8 pixels, together at about 26 dB."""
    frames, height, width, _ = film.shape
    blotches = dice.normal(0, 8, (frames, height // 8, width // 8, 3)).repeat(8, 1).repeat(8, 2)
    return film + dice.normal(0, 10, film.shape) + blotches


def bent(film: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    """Pixels moved by smooth waves of up to about 2 pixels that travel: outlines wobble."""
    frames, height, width, _ = film.shape
    y, x = np.mgrid[0:height, 0:width]
    moved = np.empty_like(film)
    waves = list(zip(*_WAVES, dice.uniform(0, 7, 4), strict=True))
    for frame in range(frames):
        shifts = [np.sin(2 * np.pi * (x * a + y * b + frame * 0.03) + c) for a, b, c in waves]
        across = np.clip(np.rint(x + shifts[0] + shifts[1]), 0, width - 1).astype(int)
        along = np.clip(np.rint(y + shifts[2] + shifts[3]), 0, height - 1).astype(int)
        moved[frame] = film[frame, along, across]
    return moved


_WAVES = ((1 / 40, 1 / 28, 1 / 34, -1 / 30), (1 / 36, -1 / 30, 1 / 26, 1 / 44))


def faded(film: np.ndarray, dice: np.random.Generator) -> np.ndarray:
    return 128 + (film - 128) * 0.85


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [blurred, noisy, bent, faded])
def test_spoilt_films_are_read(spoil):
    """Worse than the tiny VAE leaves them (28 dB): at least 95 of 100."""
    wanted = scenes(28, first=1000)
    readings = []
    for scene in wanted:
        film = spoil(render(scene, FRAMES_PER_CHUNK).astype(float), np.random.default_rng(scene.seed))
        readings.append(read(np.clip(np.rint(film), 0, 255).astype(np.uint8)))
    assert min(shares_right(wanted, readings).values()) >= 0.95
    assert np.mean([reading.whole for reading in readings]) > 0.95


@pytest.mark.parametrize("count", some(1, [12, 60]))
def test_an_empty_picture_holds_no_object(count):
    for scene in scenes(count):
        film = np.repeat(backdrop_picture(scene.backdrop, 128, 64)[None], 6, axis=0)
        noise = np.random.default_rng(scene.seed).normal(0, 6, film.shape)
        reading = read(np.clip(film + noise, 0, 255).astype(np.uint8))
        assert reading.colour is None and reading.motion is None and reading.whole == 0, scene.backdrop
        assert np.isnan(reading.path).all()
        assert reading.background == scene.backdrop.name


@pytest.mark.parametrize("count", some(1, [6, 24]))
def test_a_broken_object_is_not_whole(count):
    """A stripe of nine pixels rubbed out of its middle."""
    for scene in scenes(count):
        film = render(scene, 8)
        assert look(film).whole.all()
        behind = np.rint(backdrop_picture(scene.backdrop, 128, 64)).astype(np.uint8)
        for frame, x in zip(film, scene.thing.trajectory.at(np.arange(8))[:, 0].astype(int), strict=True):
            frame[:, x - 4 : x + 5] = behind[:, x - 4 : x + 5]
        assert not look(film).whole.any()


def test_sharpness_falls_with_blur():
    scene = draw_scene(5)
    film = render(scene, 8)
    soft = blurred(film.astype(float), np.random.default_rng(0)).astype(np.uint8)
    assert read(soft).sharpness < 0.7 * read(film).sharpness


def test_colours_by_name():
    for name, rgb in COLOURS.items():
        for light in (0.85, 1.0, 1.1):
            assert colour_name(np.clip(np.array(rgb) * light, 0, 255)) == name


AT = np.arange(33.0)


@pytest.mark.parametrize(
    ("x", "y", "motion"),
    [
        (100 - 1.2 * AT, 30 + np.sin(AT), "left"),
        (20 + 1.2 * AT + 2 * np.sin(AT), 30 + AT * 0.2, "right"),
        (60 + np.sin(AT / 3), 50 - AT, "up"),
        (60 + 0 * AT, 20 + 0.8 * AT, "down"),
        (60 + 18 * np.cos(AT / 6), 32 + 15 * np.sin(AT / 6), "circling"),
        (60 + 18 * np.cos(AT / 6), 32 - 15 * np.sin(AT / 6), "circling"),
        (60 + 0.3 * AT, 20 + np.abs(20 * np.cos(AT / 5)), "bouncing"),
        (60 + np.sin(AT), 32 + np.cos(AT), "still"),
    ],
)
def test_motions_of_paths(x, y, motion):
    path = np.stack([x, y], axis=-1)
    assert motion_of(path) == motion
    path[4], path[20] = np.nan, (3, 3)  # one frame not seen, one misread
    assert motion_of(path) == motion
