"""PSNR and SSIM against ffmpeg's filters, and against their definitions written out pixel by pixel."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.check import likeness
from helios_cli.check.compare import compare
from support.clips import film, levels, noisy, pan, scene


def by_ffmpeg(one: Path, other: Path, name: str) -> list[dict[str, float]]:
    """Return what ffmpeg's filter `name` says of each pair of frames, which are counted: a .mkv rounds times."""
    rgb = "settb=1/24,setpts=N,scale=flags=bicubic+accurate_rnd+full_chroma_int,format=gbrp"
    graph = f"[0:v]{rgb}[a];[1:v]{rgb}[b];[a][b]{name}=stats_file=-"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", one, "-i", other, "-lavfi", graph, "-f", "null"]
    lines = subprocess.run([*command, "/dev/null"], check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = (re.findall(r"(\w+): ?([\d.]+|inf)", line) for line in lines)
    return [{key: float(value) for key, value in found} for found in pairs if found]


@pytest.fixture(scope="module", params=[(128, 72), (131, 75)], ids=["even", "uneven"])
def clips(request, tmp_path_factory):
    """Two lossless films of 5 frames, their frames, and the size; the third frame is the same in both."""
    folder, (width, height) = tmp_path_factory.mktemp("clips"), request.param
    picture = scene(width=width, height=height)
    frames = np.stack([np.roll(picture, 2 * number, axis=1) for number in range(5)])
    other = noisy(frames, 12)
    other[2] = frames[2]
    return film(folder / "a.mkv", other), film(folder / "b.mkv", frames), levels(other), levels(frames)


def test_psnr_is_that_of_ffmpeg(clips):
    one, other, *frames = clips
    theirs = [stats["mse_avg"] for stats in by_ffmpeg(one, other, "psnr")]
    ours = [likeness.squared_error(*pair) for pair in zip(*frames, strict=True)]
    assert len(theirs) == 5
    assert ours == pytest.approx(theirs, abs=0.005)  # ffmpeg prints two decimals


def test_ssim_is_that_of_ffmpeg(clips):
    one, other, *frames = clips
    theirs = [stats["All"] for stats in by_ffmpeg(one, other, "ssim")]
    ours = [likeness.ssim(*pair) for pair in zip(*frames, strict=True)]
    assert ours == pytest.approx(theirs, abs=2e-6)  # ffmpeg prints six decimals, and adds up in float32


def test_ssim_is_its_definition():
    """Over several bands, with windows cut out one by one."""
    generator = np.random.default_rng(3)
    one = generator.integers(0, 256, (4 * likeness.BAND + 21, 18, 3), np.uint8)
    other = levels(one * 0.7 + generator.normal(20, 9, one.shape))
    similarities = []
    for top in range(0, one.shape[0] // 4 * 4 - 4, 4):
        for left in range(0, one.shape[1] // 4 * 4 - 4, 4):
            for channel in range(3):
                x, y = (film[top : top + 8, left : left + 8, channel].astype(float).ravel() for film in (one, other))
                covariance = np.cov(x, y)
                c1, c2 = (0.01 * 255) ** 2 / 64, (0.03 * 255) ** 2  # ffmpeg's, which rounds them
                light = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
                structure = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
                similarities.append(light * structure)
    assert likeness.ssim(one, other) == pytest.approx(np.mean(similarities), abs=1e-6)


def test_squared_error_is_its_definition():
    generator = np.random.default_rng(4)
    one, other = generator.integers(0, 256, (2, 300, 7, 3), np.uint8)
    assert likeness.squared_error(one, other) == np.mean((one.astype(float) - other) ** 2)
    assert likeness.largest_difference(one, other) == np.abs(one.astype(int) - other).max()


def test_the_ends_of_the_scales():
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert likeness.psnr(likeness.squared_error(black, white)) == 0
    assert likeness.psnr(likeness.squared_error(white, white)) is None
    assert likeness.ssim(white, white) == 1
    assert math.isnan(likeness.ssim(white[:7], white[:7]))


def test_an_mp4_against_an_mkv_is_compared_by_the_colours_that_it_names(tmp_path):
    """As ffmpeg compares them, once it has converted each by its own matrix."""
    frames = pan(scene(), 6)
    one, other = film(tmp_path / "a.mp4", frames), film(tmp_path / "b.mkv", frames)
    result = compare(one, other)
    squared = np.mean([stats["mse_avg"] for stats in by_ffmpeg(one, other, "psnr")])
    ssim = np.mean([stats["All"] for stats in by_ffmpeg(one, other, "ssim")])
    assert result.whole.psnr == pytest.approx(10 * math.log10(255**2 / squared), abs=0.01)
    assert result.whole.ssim == pytest.approx(ssim, abs=2e-6)
    assert result.whole.psnr > 35 and result.notices == ()
