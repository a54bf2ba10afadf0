"""Files of strangers: what they can reach, how much they can take, and when reading them ends."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imageio_ffmpeg
import pytest
from PIL import Image, PngImagePlugin

from helios_cli.check.examine import examine
from helios_cli.cli import main
from helios_cli.errors import InputError, MachineError
from helios_cli.film import ffmpeg, reading
from helios_cli.film.media import VideoClip, check_clip, read_image
from support.programs import ffmpeg_program, program
from support.waiting import alive, wait_until

EXE = imageio_ffmpeg.get_ffmpeg_exe()
SOURCE = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=2"]
H264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p"]


def make(path: Path, *arguments: str) -> Path:
    subprocess.run([EXE, "-v", "error", *arguments, "-y", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    """A film of somebody else's."""
    return make(tmp_path_factory.mktemp("theirs") / "secret.mp4", *SOURCE, *H264)


# What a file can reach


def dash(url: str) -> str:
    return (
        '<MPD profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static" mediaPresentationDuration="PT2S"><Period>'
        '<AdaptationSet contentType="video"><Representation id="0" mimeType="video/mp4" codecs="avc1.64000a" '
        f'bandwidth="9000"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )


MANIFESTS = {
    "DASH": (lambda path: dash(str(path)), True),
    "DASH with file:": (lambda path: dash(f"file://{path}"), True),
    "DASH beside": (lambda path: dash(os.path.relpath(path, path.parent)), True),
    "list beside": (lambda path: f"ffconcat version 1.0\nfile {path.name}\n", True),
    "HLS": (lambda path: f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{path}\n#EXT-X-ENDLIST\n", False),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_in_disguise_shows_no_other_film(secret, kind):
    text, is_read = MANIFESTS[kind]
    disguised = secret.with_name(f"{kind.replace(' ', '-').replace(':', '')}.mp4")
    disguised.write_text(text(secret))
    if is_read:  # by an ffmpeg that is not held back
        shown = subprocess.run([EXE, "-i", f"file:{disguised}", "-map", "0:v", "-f", "null", "-"], capture_output=True)
        assert shown.returncode == 0, shown.stderr[-500:]
    with pytest.raises(InputError, match="no video"):
        examine(disguised)
    with pytest.raises(InputError, match="no video"):
        check_clip(disguised, 24)


def test_a_name_with_a_number_shows_no_other_pictures(tmp_path):
    for number in range(40):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "%d.png")
    with pytest.raises(InputError):
        examine(tmp_path / "%d.png")


def test_a_picture_starts_no_program(tmp_path, monkeypatch, capfd):
    gs = program(tmp_path / "bin" / "gs", f"touch {tmp_path}/started")
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    picture = tmp_path / "sea.png"
    picture.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n")
    assert main(["plan", "x", "-m", "tiny", "--image", str(picture)]) == 2
    assert "sea.png is not a picture that can be read" in capfd.readouterr().err
    assert not (tmp_path / "started").exists()
    with pytest.raises(OSError), Image.open(picture) as eps:  # Pillow itself starts it
        eps.load()
    assert (tmp_path / "started").exists()


# What is read


@pytest.mark.parametrize("name", ["a.mts", "a.mxf", "a.wmv", "a.3gp", "a.y4m", "a.unheard"])
def test_what_ffmpeg_reads_is_read(tmp_path, capfd, name):
    options = {"a.mxf": ["-c:v", "mpeg2video"], "a.mts": H264, "a.3gp": H264, "a.unheard": [*H264, "-f", "mp4"]}
    path = make(tmp_path / name, *SOURCE, "-pix_fmt", "yuv420p", *options.get(name, []))
    assert VideoClip(path, (64, 48), 24).num_frames == pytest.approx(48, abs=1)
    assert main(["plan", "x", "-m", "tiny", "--video", str(path)]) == 0, capfd.readouterr().err


@pytest.mark.parametrize("name", ["a.avif", "a.jfif", "a.unheard"])
def test_what_pillow_reads_is_read(tmp_path, capfd, name):
    kind = {"a.avif": "AVIF"}.get(name, "JPEG")
    if kind not in [Image.init(), *Image.SAVE]:
        pytest.skip("this Pillow writes no AVIF")
    Image.new("RGB", (64, 48), "red").save(tmp_path / name, kind)
    assert read_image(tmp_path / name, (64, 48))[:, 0, 0] == pytest.approx([1, -1, -1], abs=0.05)
    assert main(["plan", "x", "-m", "tiny", "--image", str(tmp_path / name)]) == 0, capfd.readouterr().err


def png_with(path: Path, kind: bytes, content: bytes) -> Path:
    """A PNG that is turned by its EXIF, with one more chunk after its head."""
    turned = Image.Exif()
    turned[0x0112] = 3
    Image.linear_gradient("L").resize((64, 48)).save(path, exif=turned)
    data = path.read_bytes()
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(data[:33] + chunk + data[33:])
    return path


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"tEXt", b"workflow\0" + (PngImagePlugin.MAX_TEXT_MEMORY + 1) * b"x"),
        (b"zTXt", b"workflow\0\0" + zlib.compress(2_000_000 * b"x")),
        (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(2_000_000 * b"x")),
        (b"iCCP", b"profile\0\0" + zlib.compress(2_000_000 * b"x")),
    ],
    ids=["tEXt", "zTXt", "iTXt", "iCCP"],
)
def test_what_a_program_wrote_into_a_picture_is_no_reason(tmp_path, kind, content):
    path = png_with(tmp_path / "sea.png", kind, content)
    with pytest.raises(ValueError), Image.open(path) as file:
        file.load()
    plain = read_image(png_with(tmp_path / "plain.png", b"tEXt", b"a\0b"), (64, 48))
    assert (read_image(path, (64, 48)) == plain).all()
    assert plain[0, 0, 0] > plain[0, -1, 0]  # turned


# Bounds


def header_of_png(path: Path, width: int, height: int) -> Path:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 0) + b"IDAT")
    return path


@pytest.mark.parametrize(
    "size", [(1, 100_000), (100_000, 1), (12_000, 12_000), (13_300, 13_300), (2**31 - 1, 2**31 - 1)]
)
def test_the_size_of_a_picture_is_read_from_its_head(tmp_path, size):
    """No pixel is there: were one asked for, the error would be another."""
    with pytest.raises(InputError, match="too large") as refused:
        read_image(header_of_png(tmp_path / "sea.png", *size), (64, 48))
    assert "megapixels" in refused.value.hint


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_no_picture(tmp_path, kind):
    path = tmp_path / "sea.png"
    {"pipe": os.mkfifo, "device": lambda at: at.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](path)
    with pytest.raises(InputError, match=r"sea\.png"):
        read_image(path, (64, 48))


@pytest.mark.slow
def test_frames_that_are_too_large_are_refused(tmp_path):
    path = make(tmp_path / "sea.mov", "-f", "lavfi", "-i", "color=s=6400x6400:r=24:d=0.04", "-c:v", "png")
    for read in (examine, lambda path: check_clip(path, 24)):
        with pytest.raises(InputError, match=r"sea\.mov are too large, 6400x6400"):
            read(path)


@pytest.mark.parametrize("size", ["16x512", "512x16"])
def test_a_clip_of_extreme_shape_is_refused(tmp_path, size):
    path = make(tmp_path / "sea.mkv", "-f", "lavfi", "-i", f"color=s={size}:r=24:d=2", "-c:v", "ffv1")
    with pytest.raises(InputError, match=r"sea\.mkv is .* as wide as high"):
        check_clip(path, 24)
    assert examine(path).num_frames == 48


def test_a_clip_that_stands_still_for_hours_is_refused(tmp_path):
    late = "setpts='if(gt(N,40),PTS+36000/TB,PTS)'"
    path = make(tmp_path / "sea.mkv", *SOURCE, "-vf", late, "-fps_mode", "passthrough", "-c:v", "ffv1")
    with pytest.raises(InputError, match=r"sea\.mkv has no frame for 36,000 s after 2 s"):
        VideoClip(path, (64, 48), 24)


def test_a_clip_of_many_hours_is_refused(tmp_path):
    slow = ["-vf", "setpts=N*50/TB", "-fps_mode", "passthrough", "-c:v", "mpeg4"]
    path = make(tmp_path / "sea.mkv", "-f", "lavfi", "-i", "color=s=16x16:r=24:d=13", *slow)
    with pytest.raises(InputError, match=r"longer than 4 hours") as refused:
        check_clip(path, 24)
    assert "sea.mkv" in refused.value.hint


@pytest.mark.parametrize("name", ["sea.mp4", "sea.mkv"])
def test_a_clip_that_is_cut_short_is_told_of(tmp_path, capfd, name):
    path = make(tmp_path / name, "-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=12", *H264, "-movflags", "+faststart")
    assert main(["plan", "x", "-m", "tiny", "--video", str(path), "--strict"]) == 0
    assert "cut short" not in capfd.readouterr().err
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert main(["plan", "x", "-m", "tiny", "--video", str(path)]) == 0
    there = reading.extent(path).seconds
    assert 5 < there < 10.5 and f"cut short: only {there:.1f} s of 12.0 s are there" in capfd.readouterr().err
    assert main(["plan", "x", "-m", "tiny", "--video", str(path), "--strict"]) == 2
    assert "cut short" in capfd.readouterr().err


def test_reading_counts_into_the_budget(tmp_path, capfd):
    Image.new("L", (10_000, 10_000)).save(tmp_path / "sea.png", compress_level=1)
    assert main(["render", "x", "-m", "tiny", "--image", str(tmp_path / "sea.png"), "--ram", "1G"]) == 3
    assert "of host memory, of which 1 GB may be used" in capfd.readouterr().err


def test_metadata_is_bounded(tmp_path, capfd):
    text = tmp_path / "text"
    text.write_text(f";FFMETADATA1\nhelios={'x' * 5_000_000}\n")
    path = make(
        tmp_path / "film.mp4", *SOURCE, "-i", str(text), "-map_metadata", "1", *H264, "-movflags", "use_metadata_tags"
    )
    assert main(["render", "--from", str(path)]) == 2
    assert "is larger than 4 MiB" in capfd.readouterr().err


# The program


@pytest.mark.parametrize(
    ("kind", "name"), [("bsfs", "setts"), ("filters", "fps"), ("muxers", "mp4"), ("encoders", "ffv1")]
)
def test_what_ffmpeg_lacks_is_named(tmp_path, monkeypatch, kind, name):
    hide = f"""[ "$1" = -{kind} ] || exec '{EXE}' "$@"\n'{EXE}' "$@" | grep -vw {name}"""
    ffmpeg_program(tmp_path / "ffmpeg", hide, monkeypatch)
    with pytest.raises(MachineError, match=rf"lacks .*{name} \({kind[:-1]}\)") as refused:
        ffmpeg.program()
    assert "imageio-ffmpeg" in refused.value.hint


def test_an_older_name_of_an_option_is_used(tmp_path, monkeypatch):
    hide = f"""[ "$1" = -h ] || exec '{EXE}' "$@"\n'{EXE}' "$@" | grep -v fps_mode"""
    ffmpeg_program(tmp_path / "ffmpeg", hide, monkeypatch)
    assert ffmpeg.every_frame() == ["-vsync", "passthrough"]


def test_nobody_waits_for_an_ffmpeg_that_stands_still(tmp_path, monkeypatch, secret):
    stuck = f"""case "$*" in *rawvideo*) sleep 1000;; *) exec '{EXE}' "$@";; esac"""
    ffmpeg_program(tmp_path / "ffmpeg", stuck, monkeypatch)
    clip = VideoClip(secret, (64, 48), 24)
    monkeypatch.setattr(ffmpeg, "READING_SECONDS", 0.2)
    with pytest.raises(InputError, match=r"stopped making progress while reading .*secret\.mp4"):
        clip.first_frame()


@pytest.mark.slow
def test_an_encoder_that_takes_nothing_ends_the_film(tmp_path, monkeypatch):
    ffmpeg_program(
        tmp_path / "ffmpeg", f"""case "$*" in *pipe:0*) sleep 1000;; *) exec '{EXE}' "$@";; esac""", monkeypatch
    )
    process = ffmpeg.Process(["-i", "pipe:0"], doing="writing film.mp4", stdin=subprocess.PIPE, patience=0.2)
    with pytest.raises(MachineError, match=r"stopped making progress while writing film\.mp4"):
        process.write(bytes(1 << 20))
    with pytest.raises(MachineError, match=r"stopped making progress while writing film\.mp4"):
        process.wait()
    process.kill()
    process.close_input()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_of_a_reader_is_limited(tmp_path):
    source = ["-f", "lavfi", "-i", "color=s=8000x8000:d=0.1", "-f", "null", "-"]
    free, held = (ffmpeg.Process(source, doing="trying", memory=memory) for memory in (None, 150_000_000))
    assert free.wait() == 0 and held.wait() != 0


ENDLESS = """
import sys, time
from helios_cli.film import ffmpeg
process = ffmpeg.Process(["-re", "-f", "lavfi", "-i", "color", "-f", "null", "-"], doing="waiting")
print(process._popen.pid, flush=True)
time.sleep(1000)
"""


@pytest.mark.process
def test_no_ffmpeg_outlives_a_killed_process():
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not alive(child))


def test_check_hears_of_sigterm(tmp_path, monkeypatch, secret):
    def killed(path, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr("helios_cli.check.examine.examine", killed)
    assert main(["check", str(secret)]) == 130
