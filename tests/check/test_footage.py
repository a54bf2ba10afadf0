"""Any film, any name, any bytes: read as ffmpeg shows it, or refused with one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from helios_cli.check.examine import examine
from helios_cli.check.footage import open_footage
from helios_cli.errors import HeliosError, InputError
from helios_cli.film.writer import open_writer
from support.clips import CHUNK, SIZE, film, levels, pan, scene
from support.tiers import some

WIDTH, HEIGHT = SIZE
PICTURE = scene()


def ffmpeg(*arguments: str | os.PathLike) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("size", "shape"), [("640x384", (96, 160)), ("384x640", (160, 96)), ("64x48", (48, 64)), ("2000x10", (1, 160))]
)
def test_frames_are_reduced_and_never_enlarged(tmp_path, size, shape):
    path = tmp_path / "film.mkv"
    ffmpeg("-f", "lavfi", "-i", f"testsrc=s={size}:d=0.2:r=20", "-c:v", "ffv1", path)
    frames = [frame.reduced for frame in open_footage(path).frames()]
    assert len(frames) == 4 and {frame.shape for frame in frames} == {(*shape, 3)}


@pytest.mark.parametrize("times", ["N", "N*N", "floor(N/4)*4", "0"], ids=["even", "uneven", "repeated", "all equal"])
def test_each_frame_comes_with_its_own_luma(tmp_path, times):
    source = "color=s=1200x900:r=24:d=0.5,format=gray,geq=lum=20*N"
    times = f"setpts={times}/24/TB"
    ffmpeg("-f", "lavfi", "-i", source, "-vf", times, "-fps_mode", "passthrough", "-c:v", "ffv1", tmp_path / "film.mkv")
    footage = open_footage(tmp_path / "film.mkv")
    assert [(*frame.reduced[0, 0].tolist(), int(frame.luma[-1, -1])) for frame in footage.frames()] == [
        (20 * number,) * 4 for number in range(12)
    ]
    assert footage.damage is None


def test_reduction_averages_areas(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 192, 320, 3), np.uint8)
    with open_writer(tmp_path / "film.mkv", size=(320, 192), fps=24) as writer:
        writer.write(frames)
    blocks = frames.reshape(3, 96, 2, 160, 2, 3).mean((2, 4))
    read = np.stack([frame.reduced for frame in open_footage(tmp_path / "film.mkv").frames()])
    assert np.abs(read - blocks).max() <= 1  # rounding


def test_a_rotated_film_of_uneven_pixels_is_measured_as_it_is_shown(tmp_path):
    path = film(tmp_path / "film.mp4", pan(PICTURE, 4))
    ffmpeg("-display_rotation", "90", "-i", path, "-c", "copy", tmp_path / "rotated.mp4")
    ffmpeg("-i", path, "-vf", "setsar=2", tmp_path / "uneven.mp4")
    assert next(open_footage(tmp_path / "rotated.mp4").frames()).reduced.shape == (WIDTH, HEIGHT, 3)
    assert next(open_footage(tmp_path / "uneven.mp4").frames()).reduced.shape == (36, WIDTH, 3)


def test_a_folder_of_pictures_gives_what_the_film_gives(tmp_path):
    frames = levels(pan(PICTURE, 50))
    with open_writer(tmp_path / "frames", size=SIZE, fps=24) as writer:
        writer.write(frames)
    film(tmp_path / "film.mkv", frames)
    pictures, decoded = examine(tmp_path / "frames").chunks, examine(tmp_path / "film.mkv").chunks
    # ffmpeg's luma of RGB differs from the exact one by a level here and there.
    detail = {"si": 0.02, "ti": 0.02, "blur": 0.01, "entropy": 0.02}
    assert [replace(chunk, **dict.fromkeys(detail)) for chunk in pictures] == [
        replace(chunk, **dict.fromkeys(detail)) for chunk in decoded
    ]
    for ours, theirs in zip(pictures, decoded, strict=True):
        for name, tolerance in detail.items():
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=tolerance)


def test_pictures_go_by_their_numbers_and_may_be_of_any_kind(tmp_path):
    colors = {"2.png": ("RGB", "red"), "10.png": ("P", "lime"), "1.PNG": ("RGBA", "blue"), "3.png": ("L", "white")}
    for name, (mode, color) in colors.items():
        Image.new("RGB", SIZE, color).convert(mode).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    read = [tuple(frame.reduced[0, 0]) for frame in open_footage(tmp_path).frames()]
    assert read == [(0, 0, 255), (255, 0, 0), (255, 255, 255), (0, 255, 0)]


def test_a_damaged_picture_is_named(tmp_path):
    for number in range(3):
        Image.new("RGB", SIZE).save(tmp_path / f"{number}.png")
    data = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"1\.png"):
        examine(tmp_path)


NAMES = [
    "-i.mp4",
    "file:x.mp4",
    "http:__x.mp4",
    "concat:a|b.mp4",
    "100%d %06d.mp4",
    "new\nline.mp4",
    "'\"$(x).mp4",
    "пароход 日本.mp4",
    os.fsdecode(b"\xff\xfe.mp4"),
]


@pytest.mark.parametrize("name", some(3, NAMES))
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_names_mean_nothing_to_ffmpeg(tmp_path, monkeypatch, name, folder):
    frames = levels(pan(PICTURE, 3))
    monkeypatch.chdir(tmp_path)
    if folder:
        with open_writer(tmp_path / "x", size=SIZE, fps=24) as writer:
            writer.write(frames)
    else:
        film(tmp_path / "x.mp4", frames)
    os.rename(tmp_path / ("x" if folder else "x.mp4"), name)
    assert examine(name).num_frames == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path),
        lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
        lambda path: path.write_text("ffconcat version 1.0\nfile /etc/passwd\n"),
        lambda path: ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", "-f", "wav", path),
    ],
    ids=["missing", "empty", "empty folder", "fifo", "link to itself", "playlist", "list", "sound"],
)
def test_what_is_no_film_is_refused(tmp_path, make):
    make(tmp_path / "film.mp4")
    with pytest.raises(InputError, match=r"film\.mp4") as refused:
        examine(tmp_path / "film.mp4")
    assert refused.value.hint


def test_a_name_too_long_is_refused():
    with pytest.raises(InputError):
        examine("a" * 5000)


@pytest.fixture(scope="module")
def bytes_of_a_film(tmp_path_factory) -> bytes:
    return film(tmp_path_factory.mktemp("film") / "film.mp4", pan(PICTURE, 60)).read_bytes()


def test_a_film_cut_short_is_damaged(tmp_path, bytes_of_a_film):
    (tmp_path / "film.mp4").write_bytes(bytes_of_a_film[: len(bytes_of_a_film) * 2 // 3])
    report = examine(tmp_path / "film.mp4")
    assert 10 < report.num_frames < 60
    assert "damaged" in [finding.kind for finding in report.findings]


SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(junk=st.binary(max_size=2000))
@example(junk=b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom")
@example(junk=b"RIFF\xff\xff\xff\xffAVI LIST")
def test_no_bytes_make_a_traceback(tmp_path, junk):
    (tmp_path / "film.mp4").write_bytes(junk)
    with pytest.raises(InputError):
        examine(tmp_path / "film.mp4")


@SLOW
@given(data=st.data())
def test_no_damage_makes_a_traceback(tmp_path, bytes_of_a_film, data):
    """A real film with some bytes overwritten is read, or refused by name."""
    content = bytearray(bytes_of_a_film)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + 16] = data.draw(st.binary(min_size=16, max_size=16))
    (tmp_path / "film.mp4").write_bytes(content)
    try:
        report = examine(tmp_path / "film.mp4")
    except HeliosError as error:
        assert "film.mp4" in error.message
    else:
        assert report.num_frames == sum(chunk.num_frames for chunk in report.chunks) > 0


@pytest.mark.parametrize("num_frames", [1, 2, 3, CHUNK, CHUNK + 1])
def test_films_of_a_few_frames(tmp_path, num_frames):
    report = examine(film(tmp_path / "film.mp4", pan(PICTURE, num_frames)))
    assert report.num_frames == num_frames and report.findings == ()


MEASURE_PEAK = """
import re, sys
from helios_cli.check.examine import examine
report = examine(sys.argv[1])
status = open("/proc/self/status").read()
print(report.num_frames, re.search(r"VmHWM:\\s+(\\d+)", status)[1])
"""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_film(tmp_path):
    """Peak resident memory of checking 25 s against 5 s, each in its own process."""
    peaks = []
    for seconds in (5, 25):
        path = tmp_path / f"{seconds}.mp4"
        source = f"testsrc2=s=640x384:r=24:d={seconds}"
        ffmpeg("-f", "lavfi", "-i", source, "-preset", "ultrafast", "-pix_fmt", "yuv420p", path)
        command = [sys.executable, "-c", MEASURE_PEAK, str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(result[0]) == 24 * seconds
        peaks.append(int(result[1]))
    # Measured: 1 to 2 %, over 4 once on a busy machine. The reduced frames, if they were kept, would make it 44 %.
    assert peaks[1] < 1.1 * peaks[0], peaks
