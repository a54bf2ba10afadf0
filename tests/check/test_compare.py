"""Two films against each other: the numbers of chunks, what is a finding, and films that cannot be compared."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import subprocess
import threading
import tracemalloc

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from helios_cli.check import comparison_page, html
from helios_cli.check.compare import MAX_WORST, Limits, compare
from helios_cli.check.footage import open_footage
from helios_cli.check.vmaf import scorable, scoring
from helios_cli.errors import InputError
from helios_cli.film.writer import open_writer
from support.clips import CHUNK, SIZE, film, levels, noisy, pan, scene

FRAMES = pan(scene(), 2 * CHUNK + 10)


def ffmpeg(*arguments: str | os.PathLike) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "info", "-nostats", *map(str, arguments)]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stderr


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return film(tmp_path_factory.mktemp("reference") / "film.mkv", FRAMES)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The second chunk is noisy, and frame 40 worst of all; one pixel of the third differs."""
    frames = levels(FRAMES).astype(float)
    frames[CHUNK : 2 * CHUNK] = noisy(frames[CHUNK : 2 * CHUNK], 5)
    frames[40] = noisy(frames[40], 30)
    frames[-1, 3, 4, 1] += -1 if frames[-1, 3, 4, 1] > 100 else 1
    return film(tmp_path_factory.mktemp("spoilt") / "film.mkv", frames)


def test_the_numbers_of_chunks(reference, spoilt):
    result = compare(spoilt, reference)
    assert [(chunk.start_frame, chunk.num_frames) for chunk in result.chunks] == [(0, 33), (33, 33), (66, 10)]
    read = [np.stack(list(open_footage(path).pictures())).astype(float) for path in (spoilt, reference)]
    squared = ((read[0] - read[1]) ** 2).mean((1, 2, 3))
    for chunk in result.chunks:
        mean = squared[chunk.start_frame : chunk.start_frame + chunk.num_frames].mean()
        assert chunk.whole.psnr == (10 * math.log10(255**2 / mean) if mean else None)
    assert result.whole.psnr == pytest.approx(10 * math.log10(255**2 / squared.mean()))
    assert [chunk.whole.equal_frames for chunk in result.chunks] == [33, 0, 9]
    assert [chunk.whole.largest for chunk in result.chunks] == [0, 35, 1]
    assert (result.chunks[1].worst_frame, result.chunks[2].worst_frame) == (40, 75)
    assert [frame.number for frame in result.worst] == [40, 75]
    assert result.chunks[0].whole.ssim == 1 and result.whole.equal_frames == 42 and not result.is_equal


@pytest.mark.parametrize("kind", ["film.mkv", "film.mp4", "frames"])
def test_equal_films(tmp_path, kind):
    first, second = (film(tmp_path / name / kind, FRAMES[:20]) for name in ("a", "b") if not (tmp_path / name).mkdir())
    result = compare(first, second, limits=Limits(psnr=99, ssim=1, equal=True))
    assert result.is_equal and result.findings == () and result.worst == ()
    said = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (said["equal"], said["psnr"], said["ssim"], said["largest"]) == (True, None, 1, 0)
    assert (said["chunks"][0]["equal"], said["chunks"][0]["worst_psnr"]) == (True, None)


@pytest.mark.slow
def test_a_folder_of_pictures_and_a_film_are_the_same_to_it(tmp_path, reference, spoilt):
    with open_writer(tmp_path / "frames", size=SIZE, fps=24) as writer:
        writer.write(np.stack(list(open_footage(spoilt).pictures())))
    by_folder, by_film = compare(tmp_path / "frames", reference), compare(spoilt, reference)
    assert by_folder.chunks == by_film.chunks
    back = compare(reference, tmp_path / "frames")
    assert back.whole.psnr == by_film.whole.psnr and back.whole.ssim == by_film.whole.ssim


@pytest.mark.slow
def test_pictures_without_a_sidecar_have_any_rate(tmp_path):
    slow = film(tmp_path / "slow.mkv", FRAMES[:9], fps=16)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(levels(FRAMES[:9])):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    for pair in ((slow, tmp_path / "frames"), (tmp_path / "frames", slow)):
        assert compare(*pair).is_equal and compare(*pair).fps == 16


@pytest.mark.slow
def test_limits_are_for_every_chunk(reference, spoilt):
    fine = compare(spoilt, reference).chunks
    assert fine[1].whole.psnr < 40 < fine[2].whole.psnr
    (low,) = compare(spoilt, reference, limits=Limits(psnr=40)).findings
    assert (low.kind, low.chunk, low.last_chunk, low.limit) == ("low PSNR", 1, 1, 40)
    assert low.value == fine[1].whole.psnr and "below 40 dB" in low.message
    both = compare(spoilt, reference, limits=Limits(psnr=150)).findings
    assert [(found.chunk, found.last_chunk) for found in both] == [(1, 2)] and "in chunk 2" in both[0].message
    (dissimilar,) = compare(spoilt, reference, limits=Limits(ssim=0.999)).findings
    assert (dissimilar.kind, dissimilar.chunk) == ("low SSIM", 1)
    (different,) = compare(spoilt, reference, limits=Limits(equal=True)).findings
    assert (different.chunk, different.last_chunk, different.value) == (1, 2, 35)
    assert different.message == "34 frames differ, by up to 35 levels"
    assert compare(spoilt, reference, limits=Limits(psnr=10)).findings == ()


@pytest.mark.parametrize("limits", [{"psnr": math.nan}, {"psnr": -1}, {"psnr": math.inf}, {"ssim": 1.5}])
def test_limits_that_nothing_can_meet_or_everything_does(limits):
    with pytest.raises(InputError, match=next(iter(limits))):
        Limits(**limits)


def test_other_sizes(tmp_path, reference):
    ffmpeg("-i", reference, "-vf", "scale=64:36", "-c:v", "ffv1", tmp_path / "small.mkv")
    with pytest.raises(InputError, match=r"128x72.*64x36") as caught:
        compare(reference, tmp_path / "small.mkv")
    command = re.search(r"ffmpeg (.*)", caught.value.hint)[1].replace("FILM", str(tmp_path / "small.mkv")).split()
    ffmpeg(*command[:-1], tmp_path / "scaled.mkv")  # what the hint advises
    assert compare(reference, tmp_path / "scaled.mkv").num_frames == len(FRAMES)


def test_other_lengths(tmp_path, reference):
    short = film(tmp_path / "short.mkv", FRAMES[:40])
    for pair in ((short, reference), (reference, short)):
        with pytest.raises(InputError, match=r"short\.mkv has 40 frames, .*film\.mkv has 76") as caught:
            compare(*pair)
    command = re.search(r"ffmpeg (.*)", caught.value.hint)[1].split()
    ffmpeg(*command[:-1], tmp_path / "cut.mkv")
    assert compare(short, tmp_path / "cut.mkv").is_equal


@pytest.mark.slow
def test_other_rates(tmp_path):
    films = [film(tmp_path / f"{fps}.mkv", FRAMES[:5], fps=fps) for fps in (24, 16, 23.976)]
    for other in films[1:]:
        with pytest.raises(InputError, match=r"24 frames a second"):
            compare(films[0], other)


def test_a_film_that_changes_its_size(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, width in enumerate((64, 64, 32)):
        Image.new("RGB", (width, 48)).save(folder / f"{number}.png")
    with pytest.raises(InputError, match=r"frames changes its size at frame 2"):
        compare(folder, folder)


@pytest.mark.slow
def test_films_that_others_made(tmp_path):
    """VP9 in .webm, MPEG-4 in .avi and 10-bit HEVC of one film: all read, all near the original."""
    original = film(tmp_path / "original.mkv", FRAMES[:10])
    coders = {
        "a.webm": ["-c:v", "libvpx-vp9", "-crf", "20", "-b:v", "0"],
        "b.avi": ["-c:v", "mpeg4", "-q:v", "2"],
        "c.mp4": ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-crf", "10"],
    }
    for name, coder in coders.items():
        ffmpeg("-i", original, *coder, tmp_path / name)
        result = compare(tmp_path / name, original)
        assert result.num_frames == 10 and 35 < result.whole.psnr < 60, name


@pytest.mark.slow
def test_a_film_without_a_matrix_is_named(tmp_path):
    """The colours come out right only if they were coded with BT.601, as imageio and ffmpeg's defaults do."""
    film(tmp_path / "original.mkv", pan(scene(tint=(1, 0.5, 0.2)), 5))
    results = {}
    for name, matrix in (("bt601", "smpte170m"), ("bt709", "bt709")):
        path = tmp_path / f"{name}.mp4"
        convert = f"scale=out_color_matrix={matrix},format=yuv444p,setparams=colorspace=unknown"
        ffmpeg("-i", tmp_path / "original.mkv", "-vf", convert, "-c:v", "libx264", "-qp", "0", path)
        results[name] = compare(path, tmp_path / "original.mkv")
        (notice,) = results[name].notices
        assert str(path) in notice and "BT.601" in notice
    assert results["bt601"].whole.psnr > 45 > 35 > results["bt709"].whole.psnr


def test_a_damaged_film_is_a_finding(tmp_path, reference):
    data = bytearray(reference.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "film.mkv").write_bytes(data)
    kinds = {finding.kind for finding in compare(tmp_path / "film.mkv", reference).findings}
    assert kinds == {"damaged"}


@pytest.mark.slow
def test_chunks_are_those_of_a_sidecar(tmp_path, reference):
    first, second = (film(tmp_path / name, FRAMES) for name in ("a.mkv", "b.mkv"))
    chunks = [{"start_frame": 0, "num_frames": 50}, {"start_frame": 50, "num_frames": 26, "fresh": True}]
    (tmp_path / "b.json").write_text(json.dumps({"chunks": chunks}))
    assert [chunk.num_frames for chunk in compare(first, second).chunks] == [50, 26]
    assert [chunk.num_frames for chunk in compare(first, second, chunk_frames=30).chunks] == [30, 30, 16]
    (tmp_path / "b.json").write_text(json.dumps({"chunks": chunks[:1]}))
    assert [chunk.num_frames for chunk in compare(first, second).chunks] == [33, 33, 10]


def test_vmaf_is_that_of_ffmpeg(tmp_path):
    if not scorable(*SIZE):
        pytest.skip("this ffmpeg has no libvmaf")
    one, other = film(tmp_path / "a.mp4", noisy(FRAMES[:20], 20)), film(tmp_path / "b.mp4", FRAMES[:20])
    count = "settb=1/24,setpts=N"
    said = ffmpeg("-i", one, "-i", other, "-lavfi", f"[0:v]{count}[a];[1:v]{count}[b];[a][b]libvmaf", "-f", "null", "-")
    theirs = float(re.search(r"VMAF score: ([\d.]+)", said)[1])
    # ffmpeg's is of the coded luma; ours went through RGB, which rounds it once more.
    assert compare(one, other).whole.vmaf == pytest.approx(theirs, abs=0.5)
    assert theirs < 90


def test_vmaf_pairs_frames_in_order():
    if not scorable(*SIZE):
        pytest.skip("this ffmpeg has no libvmaf")
    frames = levels(FRAMES[:12])
    with scoring(*SIZE) as vmaf:
        for number, frame in enumerate(frames):
            vmaf.write(frame if number != 7 else np.roll(frame, 40, axis=1), frame)
        scores = vmaf.scores()
    assert len(scores) == 12 and scores[7] < 50 < 90 < np.delete(scores, 7).min()


def test_frames_too_small_for_ssim_and_vmaf(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for level, folder in enumerate(folders):
        folder.mkdir()
        Image.new("RGB", (7, 6), (level, 0, 0)).save(folder / "0.png")
    result = compare(*folders)
    assert (result.whole.ssim, result.whole.vmaf, result.whole.largest) == (None, None, 1)
    assert any("VMAF" in notice for notice in result.notices)
    json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(tmp_path):
    """Peaks of this process over 30 and over 300 frames differ by less than two frames."""
    peaks = []
    for count in (30, 300):
        path = tmp_path / f"{count}.mkv"
        ffmpeg("-f", "lavfi", "-i", f"testsrc=s=320x192:r=24:d={count / 24}", "-c:v", "ffv1", path)
        tracemalloc.start()
        compare(path, path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2 * 320 * 192 * 3


def test_nothing_is_left_running_when_films_do_not_match(tmp_path, reference):
    short = film(tmp_path / "short.mkv", FRAMES[:3])
    before = threading.active_count()
    with pytest.raises(InputError):
        compare(short, reference)
    assert threading.active_count() == before


def test_the_page_shows_the_worst_frames(tmp_path, reference, spoilt):
    result = compare(spoilt, reference, limits=Limits(psnr=40))
    html.write(comparison_page.page(result), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Frame 40, 0:01.67, chunk 2" in page and "low PSNR" in page
    jpegs = [Image.open(io.BytesIO(data)) for data in _pictures(page)]
    assert len(jpegs) == 3 * len(result.worst) == 6
    film_picture, other_picture, difference = (np.asarray(jpeg).astype(float) for jpeg in jpegs[:3])
    read = [list(open_footage(path).pictures())[40].astype(float) for path in (spoilt, reference)]
    gain = int(re.search(r"difference times (\d+)", page)[1])
    expected = (read[0], read[1], (np.abs(read[0] - read[1]) * gain).clip(0, 255))
    for shown, drawn in zip((film_picture, other_picture, difference), expected, strict=True):
        assert np.abs(shown - drawn).mean() < 10  # what JPEG makes of noise; other pictures are 30 and more away
    assert gain == 4  # of 8, noise of 35 levels would be clipped


def test_the_page_of_equal_films_has_no_pictures(tmp_path, reference):
    result = compare(reference, reference)
    page = comparison_page.page(result)
    assert "the films are equal" in page and _pictures(page) == []


@pytest.mark.slow
def test_the_page_shows_no_more_frames_than_fit(tmp_path):
    frames = FRAMES[: 8 * (MAX_WORST + 3)]
    first = film(tmp_path / "a.mkv", noisy(frames, 3))
    result = compare(first, film(tmp_path / "b.mkv", frames), chunk_frames=8)
    assert len(result.worst) == MAX_WORST
    assert len({frame.chunk for frame in result.worst}) == MAX_WORST
    psnrs = [frame.likeness.psnr for frame in result.worst]
    assert psnrs == sorted(psnrs) and psnrs[0] == min(chunk.worst_psnr for chunk in result.chunks)


def _pictures(page: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r"data:image/jpeg;base64,([^\"]*)", page)]
