"""Encoded films with one fault each: it is found, where it was put, with room to its limit, and nothing else is."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helios_cli.check import limits
from helios_cli.check.examine import examine
from helios_cli.check.layout import read_sidecar
from helios_cli.check.report import Finding, Report
from support.clips import CHUNK, SIZE, film, pan, scene
from support.tiers import some

FRAMES = 6 * CHUNK
WIDTH, HEIGHT = SIZE
PICTURE = scene()


@pytest.fixture(scope="module")
def panned() -> np.ndarray:
    return pan(PICTURE, FRAMES)


@pytest.fixture
def clean(panned) -> np.ndarray:
    """Six chunks of a camera that moves steadily, to put a fault in."""
    return panned.copy()


def rising() -> np.ndarray:
    """0 at the first frame to 1 at the last, to multiply frames with."""
    return np.linspace(0, 1, FRAMES)[:, None, None, None]


def examined(path, frames: np.ndarray, **options) -> Report:
    return examine(film(path / "film.mp4", frames), **options)


def only(report: Report, kind: str) -> Finding:
    assert [finding.kind for finding in report.findings] == [kind]
    return report.findings[0]


def chunks_of(finding: Finding) -> list[int]:
    return list(range(finding.chunk, finding.last_chunk + 1))


CLEAN = {
    "panned": lambda: pan(PICTURE, FRAMES),
    "slow": lambda: pan(PICTURE, FRAMES, speed=0.2),
    "whipped": lambda: pan(scene(width=4096), FRAMES, speed=14),
    "dark": lambda: pan(PICTURE, FRAMES) * 0.08,
    "foggy": lambda: 150 + 0.12 * (pan(PICTURE, FRAMES) - 110),
    "grey": lambda: pan(PICTURE, FRAMES).mean(-1, keepdims=True).repeat(3, -1),
    "still, with grain": lambda: pan(PICTURE, 1) + np.random.default_rng(0).normal(0, 3, (FRAMES, HEIGHT, WIDTH, 1)),
    "there and back": lambda: np.concatenate([pan(PICTURE, FRAMES // 2), pan(PICTURE, FRAMES // 2)[::-1]]),
    "with a flash": lambda: np.where(np.arange(FRAMES)[:, None, None, None] == 50, 250, pan(PICTURE, FRAMES)),
    "with a fade through black": lambda: (
        pan(PICTURE, FRAMES) * np.clip(np.abs(np.arange(FRAMES) - 80) / 12 - 0.3, 0, 1)[:, None, None, None]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_film_has_no_findings_and_is_well_within_the_limits(name, tmp_path):
    report = examined(tmp_path, CLEAN[name]())
    assert report.findings == ()
    for chunk in report.chunks:
        assert chunk.flicker < 0.75 * max(limits.FLICKER.value, limits.FLICKER_SHARE.value * chunk.motion)
    for chunk in report.chunks[1:]:
        assert chunk.jump < max(1.5 * chunk.usual_step, 1)
    (drift,) = report.drifts
    assert abs(drift.brightness) < limits.DRIFT_BRIGHTNESS.value / 2
    assert drift.color < limits.DRIFT_COLOR.value / 2
    assert abs(drift.saturation) < limits.DRIFT_SATURATION.value / 2
    assert abs(drift.contrast) < 0.75 * limits.DRIFT_CONTRAST.value


def test_the_numbers_are_those_of_the_frames(tmp_path):
    """A lossless film at the analysis size, so that nothing stands between its pixels and the measures."""
    frames = np.random.default_rng(0).integers(0, 256, (2 * CHUNK, HEIGHT, WIDTH, 3)).astype(float)
    report = examine(film(tmp_path / "film.mkv", frames))
    luma = frames @ [0.2126, 0.7152, 0.0722]
    steps = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    for chunk, begin in zip(report.chunks, (0, CHUNK), strict=True):
        own = slice(begin, begin + CHUNK)
        assert (chunk.red, chunk.green, chunk.blue) == pytest.approx(frames[own].mean((0, 1, 2)), abs=0.01)
        assert chunk.brightness == pytest.approx(luma[own].mean(), abs=0.01)
        assert chunk.contrast == pytest.approx(luma[own].std((1, 2)).mean(), abs=0.01)
        assert chunk.saturation == pytest.approx(np.ptp(frames[own], axis=-1).mean(), abs=0.01)
        assert chunk.motion == pytest.approx(steps[begin : begin + CHUNK - 1].mean(), abs=0.01)
    assert report.chunks[1].jump == pytest.approx(steps[CHUNK - 1], abs=0.01)


def test_black(tmp_path, clean):
    clean[2 * CHUNK : 3 * CHUNK] = 0
    report = examined(tmp_path, clean)
    black = next(finding for finding in report.findings if finding.kind == "black")
    assert chunks_of(black) == [2] and black.value == pytest.approx(CHUNK / 24)
    assert {finding.kind for finding in report.findings} == {"black", "seam jump"}


@pytest.mark.slow
@pytest.mark.parametrize("level", [40, 128, 255])
def test_a_collapsed_chunk_is_uniform(tmp_path, clean, level):
    collapsed = clean[: 3 * CHUNK]
    collapsed[-CHUNK:] = level
    found = examined(tmp_path, collapsed).findings
    assert [finding.chunk for finding in found if finding.kind == "uniform"] == [2]
    assert not [finding for finding in found if finding.kind in ("black", "frozen")]


def test_a_wholly_black_film_however_short(tmp_path):
    assert only(examined(tmp_path, np.zeros((5, HEIGHT, WIDTH, 3))), "black").value == pytest.approx(5 / 24)


@pytest.mark.slow
def test_frozen(tmp_path, clean):
    """The camera stops for 33 frames in the middle of two chunks, and goes on."""
    frames = np.concatenate([clean[:80], clean[80:81].repeat(CHUNK, 0), clean[80 : FRAMES - CHUNK]])
    frozen = only(examined(tmp_path, frames), "frozen")
    assert chunks_of(frozen) == [2, 3]
    assert frozen.value == pytest.approx(CHUNK / 24, abs=2 / 24)
    assert frozen.start_seconds == pytest.approx(80 / 24, abs=1 / 24)


@pytest.mark.slow
def test_a_key_frame_does_not_end_a_still(tmp_path):
    """The key frame that x264 inserts at frame 250 makes the picture pop."""
    report = examined(tmp_path, pan(PICTURE, 1).repeat(300, 0))
    assert report.chunks[7].motion > 0
    assert only(report, "frozen").value == pytest.approx(300 / 24)


@pytest.mark.slow
@pytest.mark.parametrize(("period", "levels"), [(2, 4), (2, 8), (4, 8)])
def test_flickering(tmp_path, clean, period, levels):
    """`levels` between bright and dark, changing at every frame or every other one."""
    frames = np.arange(3 * CHUNK, 5 * CHUNK)
    flickering = clean.copy()
    flickering[frames] += np.where(frames % period < period // 2, levels / 2, -levels / 2)[:, None, None, None]
    found = only(examined(tmp_path, flickering), "flickering")
    assert chunks_of(found) == [3, 4]
    assert found.value == pytest.approx(levels * 2 / period, rel=0.25)
    assert found.value > 1.4 * limits.FLICKER.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda frames: frames + 60 * rising(), "brightness rises"),
        (lambda frames: frames - 60 * rising(), "brightness falls"),
        (lambda frames: frames + np.array([20, -5, -45]) * rising(), "the mean colour shifts"),
        (lambda frames: _saturated(frames, 1 - 0.9 * rising()), "saturation falls"),
        (lambda frames: _saturated(frames, 1 + 2 * rising()), "saturation rises"),
        (lambda frames: _mean(frames) + (frames - _mean(frames)) * (1 - 0.8 * rising()), "contrast falls"),
    ],
)
def test_drifting(tmp_path, clean, fault, words):
    report = examined(tmp_path, fault(clean))
    drifting = {finding.message.split(" from ")[0].split(" by ")[0]: finding for finding in report.findings}
    assert {finding.kind for finding in report.findings} <= {"drifting"}
    assert chunks_of(drifting[words]) == [0, 1, 2, 3, 4, 5]
    assert abs(drifting[words].value) > 1.2 * drifting[words].limit


def _mean(frames: np.ndarray) -> np.ndarray:
    return frames.mean((1, 2), keepdims=True)


def _saturated(frames: np.ndarray, factor: np.ndarray) -> np.ndarray:
    grey = frames.mean(-1, keepdims=True)
    return grey + (frames - grey) * factor


@pytest.mark.slow
def test_seam_jump(tmp_path, clean):
    clean[3 * CHUNK :] = pan(scene(5), FRAMES - 3 * CHUNK)
    jump = only(examined(tmp_path, clean), "seam jump")
    assert chunks_of(jump) == [3] and jump.value > 2 * jump.limit
    assert jump.start_seconds == pytest.approx(3 * CHUNK / 24)


@pytest.mark.slow
def test_a_small_jump_at_every_seam_is_one_finding(tmp_path):
    """A twitch every 33 frames, as viewers of long films report it: the camera leaps by seven steps' worth."""
    frames = np.concatenate([pan(PICTURE, CHUNK, start=index * (CHUNK + 7) * 1.5) for index in range(6)])
    jump = only(examined(tmp_path, frames), "seam jump")
    assert chunks_of(jump) == [1, 2, 3, 4, 5]
    assert 1.3 * jump.limit < jump.value < 4 * jump.limit


@pytest.mark.slow
def test_motion_that_begins_after_a_still_start_is_no_jump(tmp_path):
    frames = np.concatenate([pan(PICTURE, 1).repeat(CHUNK, 0), pan(PICTURE, FRAMES - CHUNK)])
    assert only(examined(tmp_path, frames), "frozen").chunk == 0


@pytest.mark.slow
@pytest.mark.parametrize("begin", [4 * CHUNK, 4 * CHUNK - 12])
def test_the_start_comes_back(tmp_path, clean, begin):
    """At a border of chunks, and in the middle of a chunk."""
    clean[begin:] = clean[: FRAMES - begin].copy()
    found = examined(tmp_path, clean).findings
    (repeating,) = [finding for finding in found if finding.kind == "repeating"]
    assert repeating.chunk in (3, 4) and repeating.value < 0.5 * repeating.limit
    assert {finding.kind for finding in found} <= {"repeating", "seam jump"}


@pytest.mark.slow
def test_a_fixed_camera_is_no_repetition(tmp_path):
    """A bright ball goes round in front of a still background, once every two chunks."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angles = 2 * np.pi * np.arange(FRAMES) / (2 * CHUNK)
    frames = pan(PICTURE, 1).repeat(FRAMES, 0)
    for frame, angle in zip(frames, angles, strict=True):
        frame[np.hypot(rows - 36 - 22 * np.sin(angle), columns - 64 - 40 * np.cos(angle)) < 10] = (250, 240, 60)
    assert examined(tmp_path, frames).findings == ()


def sidecar(path, lengths, cuts, **more) -> None:
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    chunks = [
        {"start_frame": start, "num_frames": length, "fresh": index in cuts}
        for index, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    (path / "film.json").write_text(json.dumps({"chunks": chunks, "recipe": {}, **more}))


@pytest.mark.slow
def test_a_cut_that_the_sidecar_tells_of_is_no_fault(tmp_path, clean):
    """Another scene, brighter, from frame 86 on, with a short chunk before it; then the first scene again."""
    clean[86:152] = pan(scene(5), 66) + 60
    clean[152:] = clean[: FRAMES - 152].copy()
    assert {finding.kind for finding in examined(tmp_path, clean).findings} >= {"repeating"}
    sidecar(tmp_path, [33, 33, 20, 33, 33, 33, 13], cuts=(0, 3, 5))
    report = examine(tmp_path / "film.mp4")
    assert report.findings == () and report.notices == ()
    assert [chunk.num_frames for chunk in report.chunks] == [33, 33, 20, 33, 33, 33, 13]
    assert [(drift.first_chunk, drift.last_chunk) for drift in report.drifts] == [(0, 2), (3, 4), (5, 6)]


@pytest.mark.slow
def test_a_sidecar_of_another_film_is_not_believed(tmp_path, clean):
    sidecar(tmp_path, [40, 40], cuts=(0, 1))
    report = examined(tmp_path, clean[: 3 * CHUNK])
    assert len(report.chunks) == 3 and "80 frames" in report.notices[0]


@pytest.mark.parametrize(("fps", "expected"), [(48, [66, 66, 40]), (436, [600, 599, 363]), (1000, None)])
def test_chunks_of_a_film_at_another_rate_keep_the_limit(tmp_path, fps, expected):
    """A filter may have changed the rate. A chunk at 1000 frames a second would have 1375 frames."""
    sidecar(tmp_path, [33, 33, 20], cuts=(0,), fps=24, after={"fps": fps})
    read = read_sidecar(tmp_path / "film.mp4")
    assert (read and [span.num_frames for span in read.spans]) == expected


OTHER_JSON = (
    [
        "",
        "[]",
        "{",
        "[" * 10**5,
        '{"chunks": 3}',
        '{"chunks": [{"start_frame": 0}]}',
        '{"chunks": [5]}',
        '{"version": 1}',
    ]
    + [f'{{"chunks": [{{"start_frame": 0, "num_frames": {number}}}]}}' for number in ("0", "-1", "1e999", "NaN", '"a"')]
    + ['{"chunks": [{"start_frame": 0, "num_frames": 9' + "9" * 5000 + "}]}"]
)


def test_any_other_json_of_that_name_lists_no_chunks(tmp_path):
    read = {}
    for text in OTHER_JSON:
        (tmp_path / "film.json").write_text(text)
        read[text[:60]] = read_sidecar(tmp_path / "film.mp4")
    assert {text: sidecar for text, sidecar in read.items() if sidecar is not None} == {}


@pytest.mark.parametrize("text", some(1, OTHER_JSON[::4]))
def test_any_other_json_of_that_name_is_ignored(tmp_path, text, clean):
    """A few of them: to `examine` they are all the same."""
    (tmp_path / "film.json").write_text(text)
    report = examined(tmp_path, clean[:40])
    assert [chunk.num_frames for chunk in report.chunks] == [33, 7] and report.notices == ()


@pytest.mark.parametrize(
    ("lengths", "fps", "expected"),
    [([5], 12, 12), ([3, 2], 23.976, 24000 / 1001), ([6], 12, 24), ([5], "12", 24), ([5], 0, 24), ([5], 10**400, 24)],
)
def test_pictures_have_the_rate_that_their_sidecar_tells(tmp_path, lengths, fps, expected):
    film(tmp_path / "film", pan(PICTURE, 5))
    sidecar(tmp_path, lengths, cuts=(0,), fps=fps)
    assert examine(tmp_path / "film").fps == expected


def test_chunk_frames_overrule_the_sidecar(tmp_path, clean):
    sidecar(tmp_path, [50, 49], cuts=(0,))
    report = examined(tmp_path, clean[:99], chunk_frames=44)
    assert [chunk.start_frame for chunk in report.chunks] == [0, 44, 88]
