"""Pictures and clips from real files, made by Pillow and ffmpeg; parity with the reference's own preparation."""

import io
import socket
import struct
import subprocess
import threading
import tracemalloc
import zlib

import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helios_cli.errors import InputError
from helios_cli.film import reading
from helios_cli.film.media import VideoClip, check_clip, read_image
from helios_cli.film.writer import open_writer
from support.tiers import examples, some

SIZE = (64, 48)
EXE = imageio_ffmpeg.get_ffmpeg_exe()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def smooth(width: int, height: int) -> Image.Image:
    """A ramp: red from left to right, green from top to bottom."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.meshgrid(across, down)
    return Image.fromarray(np.stack([red, green, 0 * red], -1).astype(np.uint8))


def in_levels(values: np.ndarray) -> np.ndarray:
    """[-1, 1] back to 0..255, channels last."""
    return (np.moveaxis(values, 0, -1) + 1) * 127.5


def make_clip(path, *arguments: str):
    command = [EXE, "-v", "error", *arguments, "-y", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def film(path, frames: np.ndarray, fps: float = 24):
    with open_writer(path, size=(frames.shape[2], frames.shape[1]), fps=fps) as writer:
        writer.write(frames)
    return path


# Pictures


@pytest.mark.oracle
@pytest.mark.parametrize("source", [(64, 48), (128, 96), (32, 24)])
def test_picture_of_the_same_aspect_equals_the_reference(tmp_path, source):
    """The reference stretches, so it agrees where there is nothing to stretch: to the last bit."""
    from diffusers.video_processor import VideoProcessor

    path = tmp_path / "picture.png"
    Image.fromarray(noise(source[1], source[0], 3)).save(path)
    reference = VideoProcessor(vae_scale_factor=8).preprocess(Image.open(path), height=48, width=64)[0].numpy()
    ours = read_image(path, SIZE)
    assert ours.dtype == np.float32 and (ours == reference).all()


@pytest.mark.parametrize("source", [(300, 48), (64, 200), (20, 10), (20, 60)])
def test_another_aspect_is_cropped_evenly_and_never_stretched(tmp_path, source):
    path = tmp_path / "picture.png"
    smooth(*source).save(path)
    levels = in_levels(read_image(path, SIZE))
    assert levels.shape == (48, 64, 3)
    width, height = source
    scale = max(SIZE[0] / width, SIZE[1] / height)
    seen_across, seen_down = SIZE[0] / scale / width, SIZE[1] / scale / height  # the share of the ramp in the crop
    inner = levels[12:36, 16:48]
    slope_across = (inner[:, -1, 0] - inner[:, 0, 0]).mean() / 31 * 64 / 255
    slope_down = (inner[-1, :, 1] - inner[0, :, 1]).mean() / 23 * 48 / 255
    # A ramp of n pixels rises by 255 over n - 1 of them, hence n / (n - 1); 4 % for rounding to levels.
    assert slope_across == pytest.approx(seen_across * width / (width - 1), rel=0.04)
    assert slope_down == pytest.approx(seen_down * height / (height - 1), rel=0.04)
    assert inner[..., :2].mean((0, 1)) == pytest.approx([127.5, 127.5], abs=2.5)


def test_exif_rotation_is_applied(tmp_path):
    upright = Image.fromarray(noise(48, 64, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise to show
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert in_levels(read_image(tmp_path / "turned.png", SIZE)) == pytest.approx(np.asarray(upright), abs=1e-4)


def test_transparent_parts_lie_on_black(tmp_path):
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)
    pixels[:, 32:] = (255, 255, 255, 0)
    pixels[:24, 32:, 3] = 102  # 40 %
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    levels = in_levels(read_image(tmp_path / "alpha.png", SIZE))
    assert levels[0, 0] == pytest.approx([200, 100, 50], abs=1e-4)
    assert levels[0, 63] == pytest.approx([102] * 3, abs=1e-4)
    assert levels[47, 63] == pytest.approx([0] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "extension"), [("L", "png"), ("1", "png"), ("LA", "png"), ("P", "gif"), ("CMYK", "tif")]
)
def test_other_modes_become_rgb(tmp_path, mode, extension):
    picture = Image.new("RGB", SIZE, (255, 255, 255)).convert(mode)
    picture.paste(Image.new("RGB", (32, 48), (0, 0, 0)).convert(mode), (0, 0))
    picture.save(tmp_path / f"picture.{extension}")
    levels = in_levels(read_image(tmp_path / f"picture.{extension}", SIZE))
    assert levels[10, 5] == pytest.approx([0] * 3, abs=1e-4) and levels[10, 60] == pytest.approx([255] * 3, abs=1e-4)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((48, 64), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert in_levels(read_image(tmp_path / "grey.png", SIZE)) == pytest.approx(128, abs=1e-4)
    make_clip(
        tmp_path / "rgb.png",
        "-f",
        "lavfi",
        "-i",
        "color=0xc86432:s=64x48,format=rgb24,format=rgb48be",
        "-frames:v",
        "1",
    )
    assert in_levels(read_image(tmp_path / "rgb.png", SIZE))[0, 0] == pytest.approx([200, 100, 50], abs=1.001)


def test_float_pictures_are_refused(tmp_path):
    Image.fromarray(np.zeros((48, 64), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(InputError, match="floating-point"):
        read_image(tmp_path / "depth.tif", SIZE)


@pytest.mark.parametrize("content", [None, b"", b"not a picture", "folder", "cut"])
def test_unreadable_pictures_are_named(tmp_path, content):
    path = tmp_path / "sea.png"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        Image.fromarray(noise(48, 64, 3)).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"sea\.png") as error:
        read_image(path, SIZE)
    assert error.value.hint


def test_a_decompression_bomb_is_refused_unread(tmp_path, recwarn):
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\4IDAT" + bytes(8))
    tracemalloc.start()
    with pytest.raises(InputError, match="too large") as error:
        read_image(tmp_path / "bomb.png", SIZE)
    assert tracemalloc.get_traced_memory()[1] < 2**20 and "megapixels" in error.value.hint
    tracemalloc.stop()
    assert not recwarn.list


def sample_files() -> list[bytes]:
    files = []
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "AVIF"):
        out = io.BytesIO()
        smooth(16, 16).save(out, kind)
        files.append(out.getvalue())
    return files


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sample_files()),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_pictures_are_read_or_refused(tmp_path, data, damage):
    data = bytearray(data)
    for place, value in damage:
        data[int(place * len(data))] = value
    (tmp_path / "damaged").write_bytes(data)
    try:
        assert read_image(tmp_path / "damaged", (16, 16)).shape == (3, 16, 16)
    except InputError as error:
        assert "damaged" in error.message


# Clips


@pytest.mark.oracle
@pytest.mark.parametrize("num_frames", [33, 34, 100])
def test_lossless_clip_comes_through_bit_exact(tmp_path, num_frames):
    from diffusers.video_processor import VideoProcessor

    frames = noise(num_frames, 48, 64, 3)
    clip = VideoClip(film(tmp_path / "clip.mkv", frames), SIZE, 24)
    assert (clip.num_frames, clip.num_chunks) == (num_frames, num_frames // 33)
    wanted = (
        VideoProcessor(vae_scale_factor=8).preprocess_video([Image.fromarray(frame) for frame in frames])[0].numpy()
    )
    assert (clip.first_frame() == wanted[:, :1]).all()
    chunks = list(clip.chunks())
    assert len(chunks) == clip.num_chunks and chunks[0].dtype == np.float32
    assert (np.concatenate(chunks, axis=1) == wanted[:, num_frames % 33 :]).all()


def test_mp4_of_ours_comes_back_in_its_colors(tmp_path):
    frames = np.broadcast_to(np.array([220, 30, 40], np.uint8), (33, 48, 64, 3)).copy()
    levels = in_levels(VideoClip(film(tmp_path / "clip.mp4", frames), SIZE, 24).first_frame())
    assert abs(levels - [220, 30, 40]).max() <= 2


@pytest.mark.parametrize(("fps", "num_frames"), [(24, 48), (30, 60), (12, 24), (25, 50)])
def test_the_rate_becomes_the_films(tmp_path, fps, num_frames):
    """Two seconds stay two seconds, and frame k shows what was on at k / 24 s (or the frame nearest to it)."""
    grey = np.arange(num_frames, dtype=np.uint8) * 4
    frames = np.broadcast_to(grey[:, None, None, None], (num_frames, 48, 64, 3)).copy()
    clip = VideoClip(film(tmp_path / "clip.mkv", frames, fps=fps), SIZE, 24)
    assert clip.num_frames == 48
    shown = in_levels(next(clip.chunks()))[:, 24, 32, 0] / 4
    wanted = np.arange(15, 48) / 24 * fps
    assert abs(shown - wanted).max() <= 1
    assert in_levels(clip.first_frame())[0, 0, 0] == pytest.approx([0] * 3, abs=1e-4)


def test_a_varying_rate_is_made_constant(tmp_path):
    """24 frames a second with every third frame of the second half left out: 4 s must still be 96 frames."""
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=4", "-vf", "select='lt(n,48)+mod(n,3)'", "-fps_mode", "vfr"]
    path = make_clip(tmp_path / "phone.mkv", *source, "-c:v", "ffv1")
    assert VideoClip(path, SIZE, 24).num_frames == 96


@pytest.mark.parametrize("fps", some(2, [23.976, 24, 60]))
@pytest.mark.parametrize("start", some(1, ["0.0208", "0", "5"]))
def test_a_clip_of_the_films_rate_is_not_resampled(tmp_path, fps, start):
    """Matroska rounds times to milliseconds, and sound puts the first frame late by up to half a frame or so."""
    frames = noise(99, 48, 64, 3)
    path = film(tmp_path / "clip.mkv", frames, fps=fps)
    sound = ["-f", "lavfi", "-i", "sine=d=1", "-itsoffset", start, "-i", str(path)]
    late = make_clip(tmp_path / "late.mkv", *sound, "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "pcm_s16le")
    clip = VideoClip(late, SIZE, fps)
    assert clip.num_frames == 99
    shown = in_levels(np.concatenate(list(clip.chunks()), axis=1))
    assert (np.rint(shown) == frames).all()


def center_of_ramp(clip: VideoClip) -> tuple[float, float]:
    """Slopes of the red ramp across and the green ramp down, in ramps a picture."""
    inner = in_levels(clip.first_frame())[0, 12:36, 16:48]
    across = (inner[:, -1, 0] - inner[:, 0, 0]).mean() / 31 * 64 / 255
    return across, (inner[-1, :, 1] - inner[0, :, 1]).mean() / 23 * 48 / 255


@pytest.mark.parametrize(
    ("source", "options", "shares"),
    [
        ((256, 96), [], (0.5, 1)),
        ((64, 192), [], (1, 0.25)),
        ((64, 96), ["-aspect", "4:3"], (1, 1)),  # anamorphic: each pixel is shown twice as wide as it is high
    ],
)
def test_clips_are_cropped_evenly_and_never_stretched(tmp_path, source, options, shares):
    smooth(*source).save(tmp_path / "ramp.png")
    still = ["-loop", "1", "-framerate", "24", "-i", str(tmp_path / "ramp.png"), "-frames:v", "33", *options]
    path = make_clip(tmp_path / "clip.mkv", *still, "-c:v", "ffv1", "-pix_fmt", "bgr0")
    assert center_of_ramp(VideoClip(path, SIZE, 24)) == pytest.approx(shares, rel=0.04)


def test_rotation_in_the_file_is_applied(tmp_path):
    smooth(64, 48).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "ramp.png")
    still = ["-loop", "1", "-framerate", "24", "-i", str(tmp_path / "ramp.png"), "-frames:v", "33"]
    flat = make_clip(tmp_path / "flat.mp4", *still, "-c:v", "libx264", "-pix_fmt", "yuv444p", "-crf", "1")
    path = make_clip(tmp_path / "turned.mp4", "-display_rotation", "-90", "-i", str(flat), "-c", "copy")
    assert center_of_ramp(VideoClip(path, SIZE, 24)) == pytest.approx((1, 1), rel=0.04)


def test_ten_bit_hdr_clip_is_read_and_recognized(tmp_path):
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
    source = ["-f", "lavfi", "-i", "color=gray:s=64x48:r=24:d=1.5", "-vf", f"format=yuv420p10le,{tags}"]
    clip = VideoClip(make_clip(tmp_path / "hdr.mkv", *source, "-c:v", "ffv1"), SIZE, 24)
    assert clip.info.high_dynamic_range and clip.info.primaries == "bt2020"
    assert in_levels(clip.first_frame()) == pytest.approx(128, abs=3)


def test_a_short_clip_tells_what_is_needed(tmp_path):
    with pytest.raises(InputError, match=r"32 frames .* 33 are needed") as error:
        VideoClip(film(tmp_path / "clip.mp4", noise(32, 48, 64, 3)), SIZE, 24)
    assert "1.38 s" in error.value.hint
    with pytest.raises(InputError, match=r"32 frames .* 33 are needed"):
        check_clip(tmp_path / "clip.mp4", 24)
    check_clip(tmp_path / "clip.mp4", 25)


@pytest.mark.parametrize("content", [None, b"", b"not a film", "folder", "sound", "cut"])
def test_unreadable_clips_are_named(tmp_path, content):
    path = tmp_path / "sea.mp4"
    if content == "folder":
        path.mkdir()
    elif content == "sound":
        make_clip(path, "-f", "lavfi", "-i", "sine=d=1")
    elif content == "cut":
        film(path, noise(40, 48, 64, 3))
        path.write_bytes(path.read_bytes()[:500])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"sea\.mp4") as error:
        VideoClip(path, SIZE, 24)
    assert error.value.hint


def test_a_playlist_in_disguise_reaches_no_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        (tmp_path / "sea.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(InputError, match=r"sea\.m3u8"):
            VideoClip(tmp_path / "sea.m3u8", SIZE, 24)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_clip_that_shrank_since_it_was_counted_is_an_error(tmp_path):
    path = film(tmp_path / "clip.mkv", noise(66, 48, 64, 3))
    clip = VideoClip(path, SIZE, 24)
    film(path, noise(40, 48, 64, 3))
    with pytest.raises(InputError, match=r"clip\.mkv"):
        list(clip.chunks())


def test_a_clip_left_early_ends_its_decoder(tmp_path):
    clip = VideoClip(film(tmp_path / "clip.mkv", noise(99, 48, 64, 3)), SIZE, 24)
    chunks = clip.chunks()
    next(chunks)
    assert "messages of a program" in {thread.name for thread in threading.enumerate()}
    chunks.close()
    assert "messages of a program" not in {thread.name for thread in threading.enumerate()}


def test_reading_holds_one_chunk_at_a_time(tmp_path):
    clip = VideoClip(film(tmp_path / "clip.mkv", noise(330, 48, 64, 3)), SIZE, 24)
    chunk_bytes = 3 * 33 * 48 * 64 * 4
    tracemalloc.start()
    for _ in clip.chunks():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * chunk_bytes  # the consumer's, the next one, and its bytes


@pytest.mark.parametrize("name", ["-i.mkv", "http:x.mkv", "a|b.mkv", "concat:a.mkv", "a'b \n.mkv"])
def test_no_clip_name_is_taken_for_an_option_or_a_url(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    film(name, noise(33, 48, 64, 3))
    assert VideoClip(name, SIZE, 24).num_frames == 33


def test_probe_reads_what_ffmpeg_prints(tmp_path):
    path = make_clip(tmp_path / "a.webm", "-f", "lavfi", "-i", "color=red:s=66x50:r=25:d=1", "-c:v", "libvpx-vp9")
    info = reading.probe(path)
    assert (info.width, info.height, info.fps) == (66, 50, 25)
    assert (info.pix_fmt, info.duration) == ("yuv420p", 1.0)
