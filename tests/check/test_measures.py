"""Each measure against its definition, written from the standard or the paper, against ffmpeg's own filter for it, and
on films that ffmpeg makes with known properties."""

from __future__ import annotations

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from helios_cli.check.detail import DetailMeter, blur, entropy, spatial_information, temporal_information
from helios_cli.check.examine import examine
from helios_cli.check.flicker import periodic
from helios_cli.check.flow import MotionMeter
from helios_cli.check.report import Report, Summary


def slow(value: float):
    return pytest.param(value, marks=pytest.mark.slow)


SIZES = [(70, 90), (33, 41), (32, 40), (34, 11), (3, 3)]


def ffmpeg(*arguments) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def made(path, source: str, filters: str = "null", *, seconds: float = 4):
    """A film that ffmpeg makes of a source of its own."""
    video = ["-vf", f"{filters},scale=out_color_matrix=bt709,format=yuv420p", "-colorspace", "bt709", "-crf", "12"]
    ffmpeg("-v", "error", "-f", "lavfi", "-i", source, "-t", seconds, *video, "-preset", "veryfast", path)
    return path


def summary(report: Report) -> dict[str, Summary]:
    return {measure.name: measure for measure in report.summary}


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_spatial_information_is_that_of_p910(size):
    """ITU-T P.910, 7.7.1: the standard deviation over the pixels of the Sobel-filtered luma."""
    luma = noise(size)
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    lengths = [
        np.hypot(
            (window := luma[y - 1 : y + 2, x - 1 : x + 2].astype(int)).ravel() @ across.ravel(),
            window.ravel() @ across.T.ravel(),
        )
        for y in range(1, size[0] - 1)
        for x in range(1, size[1] - 1)
    ]
    assert spatial_information(luma) == pytest.approx(np.std(lengths), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_temporal_information_is_that_of_p910(size):
    """7.7.2: the standard deviation over the pixels of the difference of two frames."""
    first, second = noise(size), noise(size, 1)
    assert temporal_information(second, first) == pytest.approx(np.std(second.astype(float) - first), rel=1e-5)


@pytest.mark.parametrize("size", SIZES[:3])
def test_blur_is_that_of_the_paper(size):
    """Crete et al., "The blur effect", 2007, equations 1 to 6; only pixels whose nine neighbours are all there."""
    luma = noise(size)
    blurs = []
    for picture in (luma.astype(float), luma.T.astype(float)):
        length = len(picture)
        blurred = {row: picture[row - 4 : row + 5].mean(0) for row in range(4, length - 4)}
        whole, kept = 0.0, 0.0
        for row in range(5, length - 4):
            difference = abs(picture[row] - picture[row - 1])
            whole += difference.sum()
            kept += np.maximum(0, difference - abs(blurred[row] - blurred[row - 1])).sum()
        blurs.append((whole - kept) / whole)
    assert blur(luma) == pytest.approx(max(blurs), rel=1e-5)


def test_pictures_without_detail_have_none():
    flat = np.full((40, 50), 77, np.uint8)
    assert spatial_information(flat) == 0 and entropy(flat) == 0 and np.isnan(blur(flat))
    small = np.zeros((1, 2), np.uint8)
    assert spatial_information(small) == 0 and np.isnan(blur(small))


def filtered(path, filters: str, key: str) -> list[float]:
    """Return the values that an ffmpeg filter gives to every frame."""
    said = ffmpeg("-v", "error", "-i", path, "-vf", f"{filters},metadata=print:file=-", "-f", "null", "-")
    return [float(value) for value in re.findall(rf"^lavfi\.{key}=([\d.]+)", said, re.MULTILINE)]


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "moving.mp4"
    return made(path, "testsrc2=s=320x192:r=24,noise=c0s=12:c0f=t", seconds=1)


def luma_of(path, width: int, height: int) -> np.ndarray:
    output = ["-vf", "extractplanes=y", "-f", "rawvideo", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), *output]
    frames = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True).stdout
    return np.frombuffer(frames, np.uint8).reshape(-1, height, width)


def test_si_and_ti_are_those_of_the_filter(moving):
    """`siti` rounds luma down to full range, and ours to the nearest level."""
    chunk = examine(moving).chunks[0]
    si, ti = (filtered(moving, "siti", f"siti.{name}") for name in ("si", "ti"))
    assert chunk.si == pytest.approx(np.mean(si), rel=0.002)
    assert chunk.ti == pytest.approx(np.mean(ti[1:]), rel=0.002)


def test_entropy_is_that_of_the_filter(moving):
    said = filtered(moving, "scale=out_range=pc,format=yuv420p,entropy", "entropy.entropy.normal.Y")
    assert examine(moving).chunks[0].entropy == pytest.approx(np.mean(said), abs=0.001)


def test_brightness_and_saturation_follow_signalstats(tmp_path):
    """The filter measures chroma, not channels: both halve when chroma does, and luma is the same."""
    reports = []
    for share in (1, 0.5):
        path = made(tmp_path / f"{share}.mp4", "testsrc2=s=320x192:r=24", f"eq=saturation={share}", seconds=1)
        ours = summary(examine(path))
        luma, chroma = (np.mean(filtered(path, "signalstats", f"signalstats.{key}")) for key in ("YAVG", "SATAVG"))
        assert ours["brightness"].mean == pytest.approx((luma - 16) * 255 / 219, abs=2)  # colours out of range are cut
        reports.append((ours["saturation"].mean, chroma))
    (full, theirs), (half, their_half) = reports
    assert half / full == pytest.approx(their_half / theirs, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("hz", [slow(0.7), 3, slow(7.3), slow(12)])
def test_a_luma_sine_has_its_rate(tmp_path, hz):
    wave = f"geq=lum='128+5*sin(2*PI*{hz}*T+1)+20*sin(X/9)*sin(Y/7)':cb=128:cr=128"
    report = examine(made(tmp_path / "film.mp4", "color=gray:s=96x64:r=24", wave, seconds=7))
    chunk = report.chunks[2]
    assert chunk.flicker_hz == pytest.approx(hz, rel=0.01)
    sampled = 10 * (abs(np.sin(1)) if hz == 12 else 1) * 255 / 219
    assert chunk.flicker_swing == pytest.approx(sampled, rel=0.05)
    assert "flickering" in [finding.kind for finding in report.findings]
    assert any(f"{hz:.1f}" in finding.message for finding in report.findings)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(50, 150, 144),
        np.where(np.arange(144) == 50, 250, 120),
        np.where(np.arange(144) < 70, 100, 130),
        120 - 100 * np.clip(1 - np.abs(np.arange(144) - 70) / 12, 0, 1),
        np.full(144, 90.0),
    ],
    ids=["fade", "flash", "step", "dip to black", "still"],
)
def test_what_happens_once_has_no_rate(values):
    assert periodic(values.astype(float), 24) is None


def test_random_change_has_no_rate():
    """Random walks, as the brightness of a scene may go: fewer than 1 in 100 are taken for a wave that is seen."""
    generator = np.random.default_rng(0)
    walks = [periodic(100 + generator.normal(size=144).cumsum(), 24) for _ in range(300)]
    assert sum(walk is not None and walk.swing > 3 for walk in walks) < 3


@pytest.mark.parametrize("speed", [slow(0.5), 2, slow(6)])
def test_a_pan_has_signed_motion(tmp_path, speed):
    """The picture goes left by `speed` pixels a frame: down is 0, so the mean of both components is half of that."""
    source = f"mandelbrot=s=1280x384:r=24:end_pts=1:end_scale=3,loop=-1:1,crop=640:384:x='{speed}*n':y=0"
    motion = summary(examine(made(tmp_path / "film.mp4", source, seconds=2)))
    assert motion["motion_length"].mean == pytest.approx(speed, rel=0.25)
    assert motion["motion_signed"].mean == pytest.approx(speed / 2, rel=0.25)


@pytest.mark.slow
def test_a_zoom_that_breathes_cancels(tmp_path):
    size = "2*trunc({}*(0.6+0.05*sin(2*PI*t)))"
    zoom = f"scale=w='{size.format(1280)}':h='{size.format(768)}':eval=frame,crop=640:384"
    path = made(tmp_path / "film.mp4", "testsrc2=s=1280x768:r=24,loop=-1:1", zoom, seconds=4)
    motion = summary(examine(path))
    assert motion["motion_length"].mean > 1.0
    assert motion["motion_signed"].mean < 0.1 * motion["motion_length"].mean


def test_motion_of_shifted_pictures_is_the_shift():
    """Against a shift that numpy makes, right and down, without an encoder in between."""
    waves = np.random.default_rng(0).normal(size=(160, 224)).astype(np.float32)
    rate = np.hypot(*np.meshgrid(np.fft.fftfreq(160), np.fft.fftfreq(224), indexing="ij"))
    picture = np.fft.ifft2(np.fft.fft2(waves) * np.exp(-((rate * 16) ** 2))).real
    picture = (128 + 40 * picture / picture.std()).astype(np.float32)
    meter = MotionMeter()
    assert np.isnan(meter.measure(picture[30:126, 30:190])).all()
    motion = meter.measure(picture[28:124, 27:187])  # 3 right, 2 down, in pictures 160 wide
    assert motion.length == pytest.approx(np.hypot(3, 2) * 4, rel=0.08)
    assert motion.signed == pytest.approx((3 + 2) / 2 * 4, rel=0.08)


def mixed(filters: str, seconds: int) -> str:
    """Go from the film as it is to the film behind `filters`."""
    share = f"min(1,T/{seconds})"
    return f"split[a][b];[b]{filters}[b];[a][b]blend=all_expr='A*(1-{share})+B*{share}'"


@pytest.mark.slow
def test_growing_blur_is_a_drift_of_sharpness(tmp_path):
    source = "testsrc2=s=320x192:r=24,noise=c0s=20"
    path = made(tmp_path / "film.mp4", source, mixed("gblur=sigma=3", 4))
    report = examine(path)
    (finding,) = [finding for finding in report.findings if "softens" in finding.message]
    assert finding.kind == "drifting" and finding.value == pytest.approx(report.drifts[0].blur)
    assert summary(report)["si"].last < 0.9 * summary(report)["si"].first
    blurs = filtered(path, "blurdetect", "blur")  # ffmpeg's width of edges, for the direction
    assert np.mean(blurs[-14:]) > np.mean(blurs[:14])


@pytest.mark.slow
def test_colours_that_fade_are_a_drift_of_saturation(tmp_path):
    path = made(tmp_path / "film.mp4", "testsrc2=s=320x192:r=24", mixed("hue=s=0", 4))
    report = examine(path)
    assert any(finding.message.startswith("saturation falls") for finding in report.findings)
    theirs = filtered(path, "signalstats", "signalstats.SATAVG")
    ours = summary(report)["saturation"]
    assert ours.last / ours.first == pytest.approx(np.mean(theirs[-14:]) / np.mean(theirs[:14]), abs=0.05)


def test_drift_is_that_of_helios_bench(moving):
    """|M(first 15 %) - M(last 15 %)| with int(0.15 n) frames, for a measure that numpy gets from the frames."""
    levels = np.rint((luma_of(moving, 320, 192).clip(16, 235) - 16.0) * 255 / 219).astype(np.uint8)
    share = int(0.15 * len(levels))
    si = np.array([spatial_information(frame) for frame in levels])
    ours = summary(examine(moving))["si"]
    assert (ours.first, ours.last) == pytest.approx((si[:share].mean(), si[-share:].mean()), rel=0.01)
    assert ours.drift == pytest.approx(abs(ours.first - ours.last)) and ours.highest == pytest.approx(
        si.max(), rel=0.01
    )


@pytest.mark.slow
def test_a_seam_is_judged_by_the_motion_of_the_film(tmp_path):
    """The same seam: a fault where the camera is steady, and none where it jerks like that all the time."""
    picture = "mandelbrot=s=1280x384:r=24:end_pts=1:end_scale=3,loop=-1:1,scale=640:192"
    steady = f"{picture},crop=128:72:y=40:x='60+n+6*gte(n,66)'"
    jerky = f"{picture},crop=128:72:y=40:x='60+n+6*floor(n/6)'"
    kinds = [
        [finding.kind for finding in examine(made(tmp_path / f"{name}.mp4", source)).findings]
        for name, source in (("steady", steady), ("jerky", jerky))
    ]
    assert "seam jump" in kinds[0] and "seam jump" not in kinds[1]


def test_frames_of_another_size_have_no_change():
    meter = DetailMeter()
    meter.measure(noise((20, 20)))
    assert np.isnan(meter.measure(noise((24, 20))).ti)
