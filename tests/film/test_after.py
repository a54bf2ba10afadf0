"""The stage after a render, on films of drawn frames: against ffmpeg by hand, and with programs that misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.errors import HeliosError, InputError
from helios_cli.film import through
from helios_cli.film.after import After, try_after
from helios_cli.film.filters import FrameFormat
from helios_cli.film.jobs import find_jobs
from helios_cli.film.reading import probe
from helios_cli.film.through import GATED, Frames, frames_at
from helios_cli.film.writer import open_writer
from helios_cli.recipe.options import RenderOptions
from support.clips import pan, scene
from support.streams import video_stream
from support.tiers import some
from support.waiting import LONGEST, alive, wait_until

EXE = imageio_ffmpeg.get_ffmpeg_exe()
SIZE = (128, 72)
FRAMES = np.ascontiguousarray(pan(scene(), 33).clip(0, 255), np.uint8)


def behind(kind: str, fps: float = 24, size: tuple[int, int] = SIZE, **options) -> After | None:
    return After.of(RenderOptions.parse(**options), size, fps, kind)


def film(path: Path, frames: np.ndarray = FRAMES, fps: float = 24, **options) -> Path:
    after = behind(path.suffix[1:], fps, (frames.shape[2], frames.shape[1]), **options)
    with open_writer(path, size=(frames.shape[2], frames.shape[1]), fps=fps, preset="veryfast", after=after) as writer:
        for start in range(0, len(frames), 9):
            writer.write(frames[start : start + 9])
            writer.end_piece()
    return writer.close()


def run_ffmpeg(*arguments: str) -> bytes:
    return subprocess.run([EXE, "-v", "error", *arguments], capture_output=True, check=True).stdout


def decoded(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    raw = run_ffmpeg(
        "-i", f"file:{path}", "-map", "0:v", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, size[1], size[0], 3)


def times(path: Path) -> list[float]:
    """When each frame is shown, in seconds, as ffmpeg lists the file's packets."""
    lines = run_ffmpeg("-i", f"file:{path}", "-map", "0:v", "-c", "copy", "-f", "framecrc", "-").decode().splitlines()
    (tick,) = (Fraction(line.split()[-1]) for line in lines if line.startswith("#tb"))
    return [float(tick * time) for time in sorted(int(line.split(",")[2]) for line in lines if line[0] != "#")]


def filtered_by_hand(graph: str, rate: object = 24, frames: np.ndarray = FRAMES) -> np.ndarray:
    command = [EXE, "-v", "error", "-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{SIZE[0]}x{SIZE[1]}"]
    command += [
        "-framerate",
        f"{rate}",
        "-i",
        "-",
        "-vf",
        f"format=bgr0,{graph}",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, SIZE[1], SIZE[0], 3)


# Graphs


@pytest.mark.parametrize(
    "graph", ["hqdn3d=8", "tmix=frames=3", "curves=vintage", "split[a][b];[a]gblur=3[c];[b][c]blend=screen"]
)
@pytest.mark.slow
def test_a_lossless_film_has_the_frames_that_the_graph_makes_of_all_chunks_in_one(tmp_path, graph):
    assert np.array_equal(decoded(film(tmp_path / "film.mkv", filter=graph)), filtered_by_hand(graph))


@pytest.mark.parametrize("options", [{"filter": "null"}, {"through": "cat"}, {"through": "cat", "filter": "null"}])
def test_what_changes_nothing_changes_nothing(tmp_path, options):
    assert np.array_equal(decoded(film(tmp_path / "film.mkv", **options)), FRAMES)
    assert os.listdir(tmp_path) == ["film.mkv"]


@pytest.mark.parametrize("graph", ["null", "format=yuv444p", "hqdn3d=0.01", "format=gray,format=gbrp", "eq=contrast=1"])
@pytest.mark.slow
def test_colours_are_those_of_the_frames_and_tagged(tmp_path, graph):
    """Whatever formats a graph goes through, a flat colour that they all have comes back to 3 levels of 8 bits, which
    H.264 in 4:2:0 loses without a graph too."""
    level = np.broadcast_to(np.array((120, 120, 120) if "gray" in graph else (200, 80, 40), np.uint8), (5, 72, 128, 3))
    path = film(tmp_path / "film.mp4", np.ascontiguousarray(level), filter=graph)
    assert np.abs(decoded(path).astype(int) - level).max() <= 3
    stream = video_stream(path)
    assert "yuv420p(tv, bt709, " in stream and stream.startswith("h264 (High)")


def test_a_lossless_film_keeps_its_tags(tmp_path):
    stream = video_stream(film(tmp_path / "film.mkv", filter="hqdn3d"))
    assert stream.startswith("ffv1") and "bgr0(pc, gbr/bt709/bt709" in stream


@pytest.mark.parametrize(
    ("graph", "fps", "rate"),
    [
        ("minterpolate=fps=48", 24, 48),
        ("fps=60", 24, 60),
        ("framestep=2", 24, 12),
        ("fps=30000/1001", 23.976, Fraction(30000, 1001)),
    ],
)
@pytest.mark.parametrize("kind", ["mp4", "mkv"])
@pytest.mark.slow
def test_another_rate_is_constant_and_the_length_stays(tmp_path, graph, fps, rate, kind):
    path = film(tmp_path / f"film.{kind}", filter=graph, fps=fps)
    given = Fraction(24000, 1001) if fps < 24 else Fraction(24)
    starts = times(path)
    assert len(starts) == round(33 * rate / given)
    tick = 0.001 if kind == "mkv" else 1e-6  # Matroska rounds to milliseconds
    assert np.allclose(starts, np.arange(len(starts)) / float(rate), atol=tick)
    assert abs(len(starts) / Fraction(rate) - 33 / given) <= Fraction(1, 2) / Fraction(rate)


@pytest.mark.slow
def test_another_size_is_that_of_the_film(tmp_path):
    path = film(tmp_path / "film.mp4", filter="scale=iw*2:-2,transpose")
    info = probe(path)
    assert (info.width, info.height) == (144, 256)
    path = film(tmp_path / "odd.mkv", filter="crop=33:35")
    assert (probe(path).width, probe(path).height) == (33, 35)


@pytest.mark.slow
def test_a_size_that_changes_on_the_way_stays_that_of_the_film(tmp_path):
    path = film(tmp_path / "film.mkv", filter="scale=w='if(gt(n,20),64,128)':h=72:eval=frame")
    assert decoded(path).shape == FRAMES.shape


@pytest.mark.slow
def test_the_first_and_the_last_frame_are_repeated_where_a_graph_lacks_them(tmp_path):
    frames, by_hand = decoded(film(tmp_path / "a.mkv", filter="tblend=average")), filtered_by_hand("tblend=average")
    assert len(by_hand) == 32 and np.array_equal(frames, by_hand[[0, *range(32)]])
    frames, by_hand = decoded(film(tmp_path / "b.mkv", filter="tmedian=2")), filtered_by_hand("tmedian=2")
    assert len(by_hand) < 33 and len(frames) == 33 and np.array_equal(frames[-1], by_hand[-1])


# Programs


DOUBLE = """
import os, sys
size = 3 * int(os.environ["HELIOS_WIDTH"]) * int(os.environ["HELIOS_HEIGHT"])
before = None
while frame := sys.stdin.buffer.read(size):
    if before is not None:
        sys.stdout.buffer.write(bytes((a + b) // 2 for a, b in zip(before, frame)))
    sys.stdout.buffer.write(frame)
    before = frame
"""


@pytest.fixture
def script(tmp_path_factory):
    def write(text: str) -> str:
        path = tmp_path_factory.mktemp("script") / "program.py"
        path.write_text(textwrap.dedent(text))
        return f"{sys.executable} -S {path}"

    return write


def test_a_program_gets_all_frames_and_is_told_what_they_are(tmp_path):
    after = {"through": f"env | grep ^HELIOS_ | sort > {tmp_path}/told; tee {tmp_path}/given", "filter": "scale=64:36"}
    film(tmp_path / "film.mkv", fps=23.976, **after)
    assert (tmp_path / "given").read_bytes() == FRAMES.tobytes()
    told = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines())
    what = {"WIDTH": "128", "HEIGHT": "72", "FPS": "24000/1001", "FRAMES": "33"}
    assert told == {f"HELIOS_{key}": value for key, value in what.items()} | {
        f"HELIOS_OUT_{key}": value for key, value in what.items()
    } | {key: value for key, value in os.environ.items() if key.startswith("HELIOS_")}


@pytest.mark.process
def test_a_program_that_doubles_the_rate_may_lack_the_frame_behind_the_last(tmp_path, script):
    frames = decoded(film(tmp_path / "film.mkv", FRAMES[:7], through=script(DOUBLE), through_fps=48.0))
    between = (FRAMES[:6].astype(int) + FRAMES[1:7]) // 2
    assert len(frames) == 14 and np.array_equal(frames[::2], FRAMES[:7])
    assert np.array_equal(frames[1:13:2], between) and np.array_equal(frames[13], FRAMES[6])


def test_a_program_that_changes_the_size_goes_before_the_graph(tmp_path):
    grow = f"{EXE} -v error -f rawvideo -pix_fmt rgb24 -s 128x72 -i - -vf scale=256:144:flags=neighbor -f rawvideo -"
    path = film(tmp_path / "film.mkv", through=grow, through_size="256x144", filter="crop=128:144:0:0")
    assert np.array_equal(decoded(path, (128, 144)), FRAMES.repeat(2, 1).repeat(2, 2)[:, :, :128])


FRAME = 3 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    ("command", "message"),
    some(
        7,
        [
            ("cat > /dev/null; exit 3", "failed with exit status 3"),
            ("echo Błąd >&2; echo out of memory >&2; cat; exit 1", "its last messages: Błąd | out of memory"),
            ("nosuchprogram", "was not found"),
            ("/etc/passwd", "exit status 126"),
            ("kill -11 $$", "was ended by signal 11 (Segmentation fault)"),
            ("cat > /dev/null; sh -c 'kill -9 $$'", "was ended by signal 9 (Killed); did memory run out?"),
            ("true", "ended before it had read all frames"),
            (f"head -c {5 * FRAME}", "ended before it had read all frames; it took about"),
            ("cat > /dev/null", "gave 0 of 33 frames"),
            (f"cat | head -c {32 * FRAME}; cat > /dev/null", "gave 32 of 33 frames"),
            (f"tail -c {32 * FRAME + 5}", "gave 32 frames and 5 of 27,648 bytes of a frame at the end"),
            ("cat; echo", "gave more frames than it should; 33 frames of 128x72, 27,648 bytes each, at 24 fps"),
            ("yes", "gave more frames than it should"),
            ("exec 0<&-; sleep 100 & exit 0", "ended before it had read all frames"),
        ],
    ),
)
def test_a_program_that_does_not_do_its_part_is_an_error_that_says_how(tmp_path, command, message):
    with pytest.raises(HeliosError) as caught:
        film(tmp_path / "film.mkv", through=command)
    assert message in caught.value.message and f"`{command}`" in caught.value.message
    assert "chunks are safe" in caught.value.hint and os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_program_that_does_nothing_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(through, "SILENT_SECONDS", 1.5)
    command = f"sleep 1000 & echo $! > {tmp_path}/pid; echo loading >&2; sleep 1000"
    with pytest.raises(HeliosError, match=r"did nothing for .*took no frame.*loading"):
        film(tmp_path / "film.mkv", through=command)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(pid))


@pytest.mark.slow
def test_a_program_that_computes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(through, "SILENT_SECONDS", 1.0)
    busy = "end=$(($(date +%s) + 4)); while [ $(date +%s) -lt $end ]; do :; done"
    film(tmp_path / "film.mkv", through=f"{busy}; cat")


@pytest.mark.slow
def test_a_program_may_leave_its_messages_and_end_late(tmp_path):
    path = film(tmp_path / "film.mkv", through="exec 2>&-; cat; exec >&-; sleep 1")
    assert np.array_equal(decoded(path), FRAMES)


def test_a_film_that_is_given_up_leaves_no_program(tmp_path):
    after = behind("mkv", through=f"echo $$ > {tmp_path}/pid; sleep 1000")
    with pytest.raises(KeyError), open_writer(tmp_path / "film.mkv", size=SIZE, fps=24, after=after) as writer:
        writer.write(FRAMES)
        counts = writer.complete()
        next(counts)
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        counts.close()
        raise KeyError
    wait_until(lambda: not alive(pid))
    assert os.listdir(tmp_path) == ["pid"]


def test_no_program_outlives_a_process_that_is_killed(tmp_path):
    """Even one that has closed its messages."""

    def work() -> None:
        film(tmp_path / "film.mkv", through=f"exec 2>&-; sleep 1000 & echo $! $$ > {tmp_path}/pids; sleep 1000")

    pid = os.fork()
    if pid == 0:
        work()
        os._exit(1)
    wait_until(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
    pids = [int(one) for one in (tmp_path / "pids").read_text().split()]
    assert all(map(alive, pids))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not any(map(alive, pids)))


def test_no_program_starts_for_a_process_that_was_killed(tmp_path):
    """It may be killed after the start of the program's shell and before that of the guard."""
    waiting, gate = os.pipe()
    shell = subprocess.Popen(["/bin/sh", "-c", GATED, str(waiting), f"touch {tmp_path}/started"], pass_fds=[waiting])
    os.close(gate)
    assert shell.wait(LONGEST) and os.listdir(tmp_path) == []
    os.close(waiting)


# Before anything is rendered


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"filter": "hflip"}, "png", "--filter works while a film file is encoded"),
        ({"through": "cat"}, "png", "--through works while a film file is encoded"),
        ({"filter": "movie=a"}, "mp4", "--filter: 'movie' is not among the filters"),
        ({"filter": "hqdn3d=foo=1"}, "mp4", "Option not found"),
        ({"filter": "crop=65:48"}, "mp4", "--filter: it makes 65x48, but an .mp4 needs even sizes"),
        ({"through": "cat", "through_size": (65, 48)}, "mp4", "--through-size: it makes 65x48"),
        ({"through": "  "}, "mp4", "--through: the command is empty"),
        ({"through": "a" * 4001}, "mp4", "more than 4,000 characters"),
        ({"through": "cat \u200b"}, "mp4", "invisible"),
        ({"through_size": (64, 48)}, "mp4", "--through-size describes what --through gives, but there is none"),
        ({"through_fps": 48.0}, "mp4", "--through-fps describes what --through gives, but there is none"),
        ({"through": "cat", "through_fps": float("nan")}, "mp4", "must be 1 to 1000"),
        ({"through": "cat", "through_size": (16000, 16000)}, "mkv", "at most 36 megapixels"),
        ({"filter": "hflip", "takes": 2}, "mp4", "--filter works on whole films, but --takes shows parts of one"),
    ],
)
def test_what_cannot_be_done_is_found_before(options, kind, message, tmp_path):
    output = f"{tmp_path}/pictures/" if kind == "png" else f"{tmp_path}/film.{kind}"
    with pytest.raises(InputError) as caught:
        find_jobs(["a ball"], RenderOptions(output=output, size=SIZE, **options))
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"filter": "hflip"}, "png", "--filter works while a film file is encoded"),
        ({"through_fps": 48.0}, "mp4", "--through-fps describes what --through gives"),
        ({"through": "cat", "takes": 2}, "mp4", "--through works on whole films"),
    ],
)
def test_a_render_that_no_job_describes_is_checked_too(options, kind, message):
    with pytest.raises(InputError, match=message):
        try_after(RenderOptions(**options), SIZE, 24, kind)


def test_a_graph_that_suits_one_size_alone_is_left_to_the_model_s():
    try_after(RenderOptions(filter="crop=1300:700"), None, 24, "mp4")
    with pytest.raises(InputError, match="Option not found"):
        try_after(RenderOptions(filter="crop=foo=1"), None, 24, "mp4")


def test_nothing_is_nothing():
    assert behind("mp4") is None and behind("png") is None
    assert behind("mp4", filter="none", through="none") is None


def test_the_length_stays():
    frames = Frames(FrameFormat(SIZE, Fraction(24000, 1001)), 33)
    assert frames_at(Fraction(48000, 1001), frames) == 66
    assert frames_at(Fraction(1), frames) == 1
    assert frames_at(Fraction(1), Frames(frames.format, 1)) == 1
