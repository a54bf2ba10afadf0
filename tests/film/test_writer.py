"""The writer against real ffmpeg, real files and real processes. What was written is read back by ffmpeg itself."""

import hashlib
import itertools
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import weakref
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from helios_cli import machine
from helios_cli.errors import InputError, MachineError
from helios_cli.film import encoding as encoding_module
from helios_cli.film import ffmpeg, growing, reading
from helios_cli.film.compression import Encoding
from helios_cli.film.target import JOURNAL_HEAD
from helios_cli.film.writer import Target, check_target, open_writer
from support.programs import ffmpeg_program
from support.streams import video_stream
from support.tiers import some
from support.waiting import LONGEST, alive, wait_until

SIZE = (64, 48)
EXE = imageio_ffmpeg.get_ffmpeg_exe()


def moving(num_frames: int, seed: int = 0) -> np.ndarray:
    """Frames [T, 48, 64, 3] that differ from each other and compress badly."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, SIZE[1], SIZE[0], 3), np.uint8)


def flat(color: tuple[int, int, int], num_frames: int = 3) -> np.ndarray:
    return np.broadcast_to(np.array(color, np.uint8), (num_frames, SIZE[1], SIZE[0], 3)).copy()


def film(path, frames: np.ndarray, fps: float = 24, metadata: dict | None = None, **options) -> Path:
    with open_writer(path, size=SIZE, fps=fps, **options) as writer:
        writer.describe(metadata or {}, ())
        for start in range(0, len(frames), 33):
            writer.write(frames[start : start + 33])
    return writer.close()


def run_ffmpeg(*arguments: str) -> bytes:
    return subprocess.run([EXE, "-v", "error", *arguments], capture_output=True, check=True).stdout


def decoded(path: Path, pix_fmt: str = "rgb24") -> np.ndarray:
    """The file's bytes as ffmpeg decodes them, [T, bytes of a frame]."""
    raw = run_ffmpeg("-i", f"file:{path}", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", pix_fmt, "-")
    per_frame = SIZE[0] * SIZE[1] * 3 // (2 if pix_fmt == "yuv420p" else 1)
    return np.frombuffer(raw, np.uint8).reshape(-1, per_frame)


def boxes(path: Path) -> list[str]:
    """Names of an MP4's top-level boxes in order."""
    data, at, names = path.read_bytes(), 0, []
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        names.append(name.decode())
        at += length
    return names


def left_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# What is in the file


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing of a living child")
def test_the_encoder_s_memory_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "children", machine.Children())
    film(tmp_path / "film.mp4", moving(33))  # more than a pipe holds: it has begun
    assert 5e6 < machine.children.peak_bytes < 1e9
    assert machine.peak_bytes_with_children() >= machine.peak_host_bytes() + 5e6


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_mp4_is_tagged_bt709_in_container_and_bitstream(tmp_path, codec):
    path = film(tmp_path / "film.mp4", moving(3), codec=codec)
    info = reading.probe(path)
    assert (info.pix_fmt, info.width, info.height, info.fps) == ("yuv420p", *SIZE, 24)
    assert (info.primaries, info.transfer) == ("bt709", "bt709")
    stream = video_stream(path)
    assert stream.startswith(codec) and "yuv420p(tv, bt709" in stream
    data = path.read_bytes()
    assert data[data.index(b"colrnclx") + 8 :][:7] == struct.pack(">HHHB", 1, 1, 1, 0)
    headers = subprocess.run(
        [EXE, "-i", path, "-c", "copy", "-bsf:v", "trace_headers", "-f", "null", "-"], capture_output=True, text=True
    ).stderr
    for name in ("colou?r_primaries", "transfer_characteristics", "matrix_coeff\\w*"):
        assert set(re.findall(rf"\b{name} +\d+ = (\d+)", headers)) == {"1"}, name
    assert set(re.findall(r"\b(?:video_full_range_flag|color_range) +\d+ = (\d+)", headers)) == {"0"}


@pytest.mark.parametrize("preset", ["ultrafast", "medium", "veryslow"])
def test_h264_is_high_profile_with_every_preset(tmp_path, preset):
    assert video_stream(film(tmp_path / "film.mp4", moving(3), preset=preset)).startswith("h264 (High) ")


@pytest.mark.parametrize("color", [(220, 30, 40), (10, 200, 60), (30, 40, 210), (128, 128, 128), (255, 255, 255)])
def test_colors_follow_bt709(tmp_path, color):
    path = film(tmp_path / "film.mp4", flat(color))
    red, green, blue = (value / 255 for value in color)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    wanted = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    frame, num_pixels = decoded(path, "yuv420p")[1].astype(float), SIZE[0] * SIZE[1]
    planes = (frame[:num_pixels], frame[num_pixels : num_pixels * 5 // 4], frame[num_pixels * 5 // 4 :])
    for plane, value in zip(planes, wanted, strict=True):
        assert abs(plane - value).max() <= 1  # half a level of rounding, half of compression
    assert abs(decoded(path)[1].reshape(-1, 3).astype(int) - color).max() <= 2


@pytest.mark.parametrize("num_frames", some(2, [1, 34, 33, 100]))
@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film/"])
def test_film_has_exactly_the_frames_given(tmp_path, num_frames, name):
    path = film(f"{tmp_path}/{name}", moving(num_frames))
    count = len(left_in(path)) if path.is_dir() else len(decoded(path))
    assert count == num_frames
    assert left_in(tmp_path) == [path.name]


@pytest.mark.parametrize(("fps", "exact"), [(24, "24"), (23.976, "24000/1001"), (29.97, "30000/1001"), (12.5, "25/2")])
def test_mp4_has_one_constant_frame_time(tmp_path, fps, exact):
    path = film(tmp_path / "film.mp4", moving(40), fps=fps)
    listing = run_ffmpeg("-i", str(path), "-c", "copy", "-copyts", "-f", "framehash", "-").decode()
    timebase = re.search(r"#tb 0: (\d+)/(\d+)", listing)
    rows = [line.split(",") for line in listing.splitlines() if not line.startswith("#")]
    times = sorted(int(row[2]) for row in rows)
    deltas = {later - earlier for earlier, later in itertools.pairwise(times)}
    durations = {int(row[3]) for row in rows}
    assert times[0] == 0 and deltas == durations and len(deltas) == 1
    assert ffmpeg.Fraction(int(timebase[1]) * deltas.pop(), int(timebase[2])) == 1 / ffmpeg.Fraction(exact)


def test_mp4_index_stands_before_the_data(tmp_path):
    names = boxes(film(tmp_path / "film.mp4", moving(5)))
    assert names.index("moov") < names.index("mdat")


def test_mkv_is_bit_exact(tmp_path):
    frames = moving(34)
    path = film(tmp_path / "film.mkv", frames)
    assert (decoded(path) == frames.reshape(34, -1)).all()
    info = reading.probe(path)
    assert (info.fps, info.primaries) == (24, "bt709")
    assert re.match(r"ffv1, \w+\(pc, ", video_stream(path))


def test_png_folder_is_bit_exact(tmp_path):
    frames = moving(3)
    path = film(tmp_path / "frames", frames)
    assert left_in(path) == ["frame_000001.png", "frame_000002.png", "frame_000003.png"]
    assert (np.stack([np.asarray(Image.open(path / name)) for name in left_in(path)]) == frames).all()


def test_same_frames_make_the_same_file(tmp_path):
    digests = {hashlib.sha256(film(tmp_path / f"{i}.mp4", moving(20)).read_bytes()).digest() for i in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_metadata_comes_back_as_given(tmp_path, name):
    metadata = {"title": "Łódź = a; #b \\ c", "helios_recipe": "two\nlines " + "x" * 300_000}
    path = film(tmp_path / name, moving(1), metadata=metadata)
    text = run_ffmpeg("-i", str(path), "-f", "ffmetadata", "-").decode()
    pairs = re.findall(r"^((?:\\.|[^\\=\n])+)=((?:\\[\s\S]|[^\\\n])*)$", text, re.MULTILINE)
    found = {key.lower(): re.sub(r"\\([\s\S])", r"\1", value) for key, value in pairs}
    assert metadata.items() <= found.items()


# Names


@pytest.mark.parametrize(
    "name", ["-y.mp4", "http:x.mp4", "a|b.mp4", "%d.mp4", "file:f.mkv", "%03d", "a b'\"\n.MP4", "-"]
)
def test_no_name_is_taken_for_an_option_a_url_or_a_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = film(name, moving(2))
    assert left_in(tmp_path) == [name]
    assert (len(left_in(path)) if path.is_dir() else len(decoded(path))) == 2


def test_unknown_extension_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError) as error:
        Target.of(tmp_path / "film.avi")
    assert ".avi" in error.value.message and all(kind in error.value.hint for kind in (".mp4", ".mkv", "/"))


def test_a_slash_or_a_folder_means_pictures(tmp_path):
    (tmp_path / "takes.v2").mkdir()
    assert Target.of(f"{tmp_path}/film.mp4/").kind == "png"
    assert Target.of(tmp_path / "takes.v2").kind == "png"


@pytest.mark.parametrize("name", [".DS_Store", "._frame_000001.png", "Thumbs.db", "@eaDir", ".nfs00a1B2"])
@pytest.mark.parametrize("frames", [0, 2])
def test_what_other_programs_leave_in_a_folder_is_overlooked(tmp_path, name, frames):
    """In a folder for the film, empty or with an earlier one."""
    place = tmp_path / "frames"
    if frames:
        film(f"{place}/", moving(frames))
    place.mkdir(exist_ok=True)
    (place / name).mkdir() if name.startswith("@") else (place / name).write_bytes(b"\0")
    film(f"{place}/", moving(3))
    assert left_in(place) == [f"frame_00000{number}.png" for number in (1, 2, 3)] and left_in(tmp_path) == ["frames"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_frames_that_are_replaced_stay_until_the_new_ones_have_their_name(tmp_path, monkeypatch, error):
    """An error, or Ctrl-C, when the old ones have lost theirs already."""
    place = film(tmp_path / "frames", moving(5))
    rename = os.rename

    def fails(source, target):
        if Path(source).name == "frames.partial":
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises((MachineError, KeyboardInterrupt)):
        film(f"{place}/", moving(2))
    assert len(left_in(place)) == 5 and not [name for name in left_in(tmp_path) if name.startswith(".")]
    assert len(left_in(tmp_path / "frames.partial")) == 2, "nor is the new film lost"


# What is refused before the start


def test_existing_film_needs_force(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"film\.mp4 exists") as error:
        check_target(path, force=False)
    assert "--force" in error.value.hint
    assert check_target(path, force=True).path == path
    film(path, moving(1))
    assert len(decoded(path)) == 1


def test_existing_frames_need_force_and_are_replaced_as_a_whole(tmp_path):
    path = film(tmp_path / "frames", moving(5))
    with pytest.raises(InputError, match="exists"):
        check_target(path, force=False)
    film(path, moving(2))
    assert len(left_in(path)) == 2 and left_in(tmp_path) == ["frames"]


@pytest.mark.parametrize("frames", [0, 2])
def test_a_link_to_a_folder_stays_a_link_to_the_film(tmp_path, frames):
    (tmp_path / "disk" / "frames").mkdir(parents=True)
    if frames:
        film(tmp_path / "disk" / "frames", moving(frames))
    (tmp_path / "here").symlink_to("disk/frames")
    film(f"{tmp_path}/here/", moving(3))
    assert (tmp_path / "here").is_symlink() and len(left_in(tmp_path / "here")) == 3
    assert left_in(tmp_path) == ["disk", "here"] and left_in(tmp_path / "disk") == ["frames"]


@pytest.mark.parametrize("folder", ["frames", "frames.partial"])
def test_folder_with_other_files_is_never_touched(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt|no journal frames\.journal"):
        check_target(tmp_path / "frames", force=True)
    with pytest.raises(InputError, match=r"thesis\.txt|no journal frames\.journal"):
        film(f"{tmp_path}/frames/", moving(1))
    assert (tmp_path / folder / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/film.mp4", "does not exist"),
        ("x" * 250 + ".mp4", "too long"),
        ("/dev/null", "not a folder|not writable"),
        ("/", "mount point"),
        ("/proc/", "mount point"),
    ],
)
def test_impossible_targets_are_input_errors(tmp_path, name, message):
    with pytest.raises(InputError, match=message) as error:
        check_target(tmp_path / name, force=True)
    assert error.value.hint
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "options",
    [{"crf": 0}, {"crf": 52}, {"codec": "av1", "crf": 64}, {"preset": "fastest"}, {"codec": "divx"}, {"fps": 0}],
)
def test_bad_quality_is_refused_before_the_start(tmp_path, options):
    with pytest.raises(InputError) as error:
        open_writer(tmp_path / "film.mp4", **{"size": SIZE, "fps": 24} | options)
    assert "write" in error.value.hint and left_in(tmp_path) == []


def test_odd_size_is_refused_for_mp4_only(tmp_path):
    with pytest.raises(InputError, match="65x48"):
        open_writer(tmp_path / "film.mp4", size=(65, 48), fps=24)
    with open_writer(tmp_path / "film.mkv", size=(65, 47), fps=24) as writer:
        writer.write(np.zeros((1, 47, 65, 3), np.uint8))
    assert reading.probe(tmp_path / "film.mkv").width == 65


def test_wrong_arrays_are_refused(tmp_path):
    with open_writer(tmp_path / "film.mp4", size=SIZE, fps=24) as writer:
        for bad in (moving(2)[:, ::-1], moving(2).astype(np.float32), moving(2)[0], moving(2)[:0]):
            with pytest.raises(ValueError, match="contiguous uint8"):
                writer.write(bad)
        writer.write(moving(1))


def test_a_film_without_frames_is_no_film(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        film(tmp_path / "film.mp4", moving(0))
    assert left_in(tmp_path) == []


def test_encoders_are_tried():
    assert ffmpeg.available_encoders() == ("h264", "hevc", "av1", "ffv1")
    assert ffmpeg.encodes(["-c:v", "no_such_encoder"]) is False
    ffmpeg.check_encoding(Encoding("av1", crf=30, preset="fast"))


@pytest.mark.parametrize("program", ["/nowhere/ffmpeg", "/bin/true", "/etc/passwd"])
def test_missing_ffmpeg_is_a_machine_error(tmp_path, monkeypatch, program):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    with pytest.raises(MachineError, match=r"does not start|does not respond|does not behave") as error:
        film(tmp_path / "film.mp4", moving(1))
    assert "IMAGEIO_FFMPEG_EXE" in error.value.hint and left_in(tmp_path) == []


# What goes wrong on the way


@pytest.mark.parametrize("name", ["film.mp4", "frames/"])
def test_an_exception_leaves_nothing_and_the_old_film(tmp_path, name):
    film(f"{tmp_path}/{name}", moving(7))
    before = left_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), open_writer(f"{tmp_path}/{name}", size=SIZE, fps=24) as writer:
        writer.write(moving(33))
        raise KeyboardInterrupt
    assert left_in(tmp_path) == before
    with pytest.raises(ValueError, match="closed"):
        writer.write(moving(1))


def test_ffmpeg_killed_midway_is_noticed_at_the_next_write(tmp_path):
    with pytest.raises(MachineError, match=r"signal 9 .* writing .*film\.mp4"):  # noqa: SIM117
        with open_writer(tmp_path / "film.mp4", size=SIZE, fps=24) as writer:
            writer.write(moving(33))
            wait_until(lambda: writer._encoder)
            os.kill(writer._encoder._ffmpeg._popen.pid, signal.SIGKILL)
            for _ in range(100 * LONGEST):
                writer.write(moving(33))
                time.sleep(0.01)
    assert left_in(tmp_path) == []


def test_ffmpeg_stopping_with_an_error_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "piece_arguments", lambda *_: ["-c:v", "no_such_encoder", "-f", "mp4"])
    with pytest.raises(MachineError, match="no_such_encoder") as error:
        film(tmp_path / "film.mkv", moving(100))
    assert "IMAGEIO_FFMPEG_EXE" in error.value.hint and left_in(tmp_path) == []


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_film_needs_no_place_but_its_own(tmp_path, monkeypatch, name):
    """Where all else can only be read there is no folder for temporary files."""

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", nowhere)
    assert len(decoded(film(tmp_path / name, moving(3)))) == 3 and left_in(tmp_path) == [name]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_film_that_lost_frames_at_its_end_does_not_get_its_name(tmp_path, monkeypatch, name):
    """An ffmpeg that copies fewer than there are, and ends well."""
    fewer = 'case "$*" in *map_chapters*) set -- "${@:1:$#-2}" -frames:v 50 "${@: -2}";; esac'
    ffmpeg_program(tmp_path / "bin" / "ffmpeg", f"{fewer}\nexec '{EXE}' \"$@\"", monkeypatch)
    with pytest.raises(MachineError, match="50 of 70 frames"):
        film(tmp_path / name, moving(70))
    assert left_in(tmp_path) == ["bin"]


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_an_ffmpeg_that_tells_no_frames_while_it_copies_is_believed_by_its_film(tmp_path, monkeypatch, name):
    """7.0 is one."""
    silent = f'case "$*" in *map_chapters*) \'{EXE}\' "$@" 2> >(grep -v ^frame= >&2); exit $?;; esac'
    ffmpeg_program(tmp_path / "bin" / "ffmpeg", f"{silent}\nexec '{EXE}' \"$@\"", monkeypatch)
    assert len(decoded(film(tmp_path / name, moving(70)))) == 70


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "frames/"])
def test_full_disk_is_named(small_disk, name):
    with pytest.raises(MachineError, match=r"disk became full|No space left") as error:
        film(f"{small_disk}/{name}", moving(200), crf=1)
    assert "free some space" in error.value.hint and left_in(small_disk) == []


@pytest.mark.parametrize("name", ["film.mkv", "frames/"])
def test_a_folder_that_vanishes_is_no_full_disk(tmp_path, name):
    (tmp_path / "disk").mkdir()
    writer = open_writer(f"{tmp_path}/disk/{name}", size=SIZE, fps=24)
    writer.write(moving(1))
    (tmp_path / "disk").rename(tmp_path / "gone")
    with pytest.raises(MachineError, match="No such file") as error:
        writer.close()
    assert f"restore the folder {tmp_path}/disk" in error.value.hint and "space" not in error.value.hint


def run_script(source: str, *arguments: str | Path, **options) -> subprocess.Popen:
    """A Python process with SIZE, `np` and the writer imported."""
    prelude = "import sys, time, numpy as np\nfrom helios_cli.film.writer import open_writer\n"
    prelude += f"noise = np.random.default_rng(0).integers(0, 256, (33, {SIZE[1]}, {SIZE[0]}, 3), np.uint8)\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(source), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.process
def test_file_size_limit_is_named(tmp_path):
    process = run_script(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with open_writer(sys.argv[1], size=(64, 48), fps=24, crf=1) as writer:
            for _ in range(30):
                writer.write(noise)
        """,
        tmp_path / "film.mp4",
    )
    assert "MachineError: the file-size limit was reached" in process.communicate(timeout=LONGEST)[1]
    assert left_in(tmp_path) == []


@pytest.mark.process
def test_death_of_the_renderer_leaves_no_film_and_no_encoder(tmp_path):
    process = run_script(
        """
        with open_writer(sys.argv[1], size=(64, 48), fps=24) as writer:
            writer.write(noise)
            while not writer._encoder:
                time.sleep(0.01)
            print(writer._encoder._ffmpeg._popen.pid, flush=True)
            time.sleep(60)
        """,
        tmp_path / "film.mp4",
    )
    encoder = int(process.stdout.readline())
    process.kill()
    process.communicate()
    wait_until(lambda: not alive(encoder))
    assert left_in(tmp_path) == ["film.mp4.journal", "film.partial.mp4"]
    film(tmp_path / "film.mp4", moving(5))
    assert left_in(tmp_path) == ["film.mp4"] and len(decoded(tmp_path / "film.mp4")) == 5


def test_an_encoder_that_outlives_its_killed_parent_cannot_spoil_the_next_film(tmp_path):
    Target.of(tmp_path / "film.mp4").journal.write_bytes(JOURNAL_HEAD)
    with (tmp_path / "film.partial.mp4").open("wb") as orphan:
        path = film(tmp_path / "film.mp4", moving(5))
        orphan.write(b"x" * 100_000)
    assert len(decoded(path)) == 5 and left_in(tmp_path) == ["film.mp4"]


@pytest.mark.process
def test_ctrl_c_in_the_terminal_reaches_python_alone(tmp_path):
    process = run_script(
        """
        with open_writer(sys.argv[1], size=(64, 48), fps=24) as writer:
            writer.write(noise)
            try:
                print("ready", flush=True)
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                writer.write(noise)
        """,
        tmp_path / "film.mp4",
        process_group=0,
    )
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole foreground group
    assert process.communicate(timeout=LONGEST)[1] == "" and process.returncode == 0
    assert len(decoded(tmp_path / "film.mp4")) == 66


@pytest.fixture
def gated_ffmpeg(tmp_path, monkeypatch):
    """An ffmpeg that starts to read its input when the file `open` appears in the folder given."""
    folder = tmp_path / "gate"
    waiting = f"[ $# -le 2 ] || while [ ! -e '{folder}/open' ]; do sleep 0.02; done"
    ffmpeg_program(folder / "ffmpeg", f"{waiting}\nexec '{EXE}' \"$@\"", monkeypatch)
    return folder / "open"


@pytest.mark.slow
def test_a_slow_encoder_holds_the_renderer_back_at_the_bound(tmp_path, gated_ffmpeg, monkeypatch):
    frames = moving(33)
    monkeypatch.setattr(encoding_module, "QUEUE_BYTES", 3 * frames.nbytes)
    with open_writer(tmp_path / "film.mp4", size=SIZE, fps=24) as writer:
        for _ in range(3):
            writer.write(frames)  # within the bound nothing waits, though nothing is encoded: else this never returns
        fourth = threading.Thread(target=writer.write, args=(frames,))
        fourth.start()
        fourth.join(0.5)
        assert fourth.is_alive() and writer.num_frames == 99
        gated_ffmpeg.touch()
        fourth.join(20)
        assert not fourth.is_alive()
    assert len(decoded(tmp_path / "film.mp4")) == 132


def test_one_array_larger_than_the_bound_still_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding_module, "QUEUE_BYTES", 1)
    with open_writer(tmp_path / "film.mp4", size=SIZE, fps=24) as writer:
        writer.write(moving(33))
        writer.write(moving(33))
    assert len(decoded(tmp_path / "film.mp4")) == 66


def test_written_frames_are_let_go(tmp_path):
    with open_writer(tmp_path / "film.mp4", size=SIZE, fps=24) as writer:
        frames = moving(33)
        watch = weakref.ref(frames)
        writer.write(frames)
        del frames
        wait_until(lambda: watch() is None)


def test_abort_does_not_wait_for_a_stuck_encoder(tmp_path, gated_ffmpeg):
    writer = open_writer(tmp_path / "film.mp4", size=SIZE, fps=24)
    writer.write(moving(33))
    writer.abort()  # the gate stays closed: waiting for the encoder would never end
    writer.abort()
    assert left_in(tmp_path) == ["gate"]
