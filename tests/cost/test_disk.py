"""The ceilings, against real encodes."""

from types import SimpleNamespace

import numpy as np
import pytest

from helios_cli.cost.estimate import film_bytes, film_kind
from helios_cli.film.writer import Target, open_writer

SIZE, FRAMES = (640, 384), 12


def pictures(noise: int) -> np.ndarray:
    """A moving gradient with grain of up to `noise` levels."""
    random = np.random.default_rng(0)
    across = np.arange(SIZE[0]) * 255 / SIZE[0]
    base = np.stack([np.roll(across, 5 * frame) for frame in range(FRAMES)])[:, None, :, None]
    grain = random.integers(-noise, noise + 1, (FRAMES, SIZE[1], SIZE[0], 3))
    return (base + grain).clip(0, 255).astype(np.uint8)


def written(frames: np.ndarray, path: str, **encoding) -> int:
    with open_writer(path, size=SIZE, fps=24, **encoding) as writer:
        writer.write(frames)
        target = writer.target.path
    files = target.iterdir() if target.is_dir() else [target]
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize(("codec", "crf"), [("h264", 17), ("av1", 17)])
def test_a_grainy_film_stays_below_the_ceiling(codec, crf, tmp_path):
    plan = SimpleNamespace(size=SIZE, num_frames=FRAMES)
    size = written(pictures(8), f"{tmp_path}/film.mp4", codec=codec, crf=crf, preset="veryfast")
    ceiling = film_bytes(plan, "mp4", codec, crf)
    assert size < ceiling < 10 * size  # and it is no wild guess


@pytest.mark.parametrize("name", ["film.mkv", "frames/"])
def test_noise_itself_stays_below_the_ceiling(name, tmp_path):
    plan = SimpleNamespace(size=SIZE, num_frames=FRAMES)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (FRAMES, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    size = written(frames, f"{tmp_path}/{name}")
    assert 0.9 < size / film_bytes(plan, film_kind(name), "h264", 17) < 1


@pytest.mark.parametrize("name", ["film.mp4", "FILM.MKV", "folder/", "folder", "a.b/c.mp4"])
def test_kinds_are_those_of_the_writer(name, tmp_path):
    assert film_kind(name) == Target.of(f"{tmp_path}/{name}").kind
    assert film_kind(None) == "mp4"
