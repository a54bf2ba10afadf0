"""`helios bench quality`: a film of the toy world scores full marks, and each fault that is put into one is found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cli import main
from helios_cli.commands import bench_quality
from helios_cli.engine import chunks as engine
from helios_cli.engine.denoise import Denoiser
from helios_cli.engine.history import History
from helios_cli.train.ablation import AbsoluteDenoiser, AnchorlessHistory
from helios_cli.train.world.captions import labels
from helios_cli.train.world.draw import backdrop_picture, render
from helios_cli.train.world.judge import Watcher, adherence, change, changes, jumps_of, lasting, score
from helios_cli.train.world.scene import Scene, draw_scene
from helios_cli.units import FRAMES_PER_CHUNK
from support.checkpoints import SMALL_VAE

HALF_MINUTE = 24 * 30


def watched(film: np.ndarray, piece: int = 50):
    """The film as it comes from an engine, in pieces that are not chunks."""
    watcher = Watcher()
    for at in range(0, len(film), piece):
        watcher.write(film[at : at + piece])
    return watcher.result()


def scene_with(motion: str, kind: str = "plain") -> Scene:
    drawn = (draw_scene(seed) for seed in range(500))
    return next(scene for scene in drawn if scene.thing.motion == motion and scene.backdrop.kind == kind)


@pytest.mark.slow
def test_the_world_itself_has_full_marks():
    scores = []
    for seed in range(42):
        scene = draw_scene(seed, split="train" if seed % 2 else "held_out")
        scores.append(score(render(scene, 2 * FRAMES_PER_CHUNK), labels(scene.segments[0])))
    table = adherence(scores)
    assert table["films"] == 42
    for name in ("background", "colour", "shape", "motion", "all_four", "whole", "smooth_borders"):
        assert table[name] >= 0.98, (name, table)


@pytest.mark.slow
@pytest.mark.parametrize("motion", ["left", "up", "circling", "bouncing", "still"])
def test_half_a_minute_of_the_world_lasts(motion):
    found = watched(render(scene_with(motion), HALF_MINUTE))
    assert found.seconds == 30 and found.borders == 21
    assert found.worst_drift_percent < 0.1 and found.restarts == 0
    assert found.whole > 0.99 and found.smooth_borders > 0.97
    assert found.same_colour == 1 and found.same_shape == 1
    assert found.last_sharpness == pytest.approx(found.sharpness, rel=0.05)


@pytest.mark.slow
def test_a_fading_background_is_drift():
    """8 % of black mixed in over the film: the middles of its first and last ten seconds are 20 of 30 seconds apart."""
    film = render(scene_with("left"), HALF_MINUTE).astype(float)
    faded = film * np.linspace(1, 0.92, HALF_MINUTE)[:, None, None, None]
    brightest = film[0, 0, 0].max() / 255
    found = watched(np.rint(faded).astype(np.uint8))
    assert found.drift_percent == pytest.approx(100 * 0.08 * 20 / 30 * brightest, rel=0.1)
    assert found.worst_drift_percent == pytest.approx(found.drift_percent)


@pytest.mark.slow
def test_a_film_that_comes_back_has_drifted_in_between():
    film = render(scene_with("left"), HALF_MINUTE).astype(float)
    dimmed = film * (1 - 0.1 * np.sin(np.linspace(0, np.pi, HALF_MINUTE)))[:, None, None, None]
    found = watched(np.rint(dimmed).astype(np.uint8))
    assert found.drift_percent < 1 < 3 < found.worst_drift_percent


@pytest.mark.slow
def test_a_repeated_start_is_found():
    """Some chunks are the first one again, at times when the object would be elsewhere."""
    scene = scene_with("right")
    film = render(scene, 12 * FRAMES_PER_CHUNK)
    begins = np.arange(12) * FRAMES_PER_CHUNK
    away = np.linalg.norm(scene.thing.trajectory.at(begins) - scene.thing.trajectory.at(np.zeros(1)), axis=1)
    again = np.flatnonzero(away > 20)[::2]
    for begin in begins[again]:
        film[begin : begin + FRAMES_PER_CHUNK] = film[:FRAMES_PER_CHUNK]
    found = watched(film)
    assert len(again) >= 3 and found.restarts == len(again)
    assert found.smooth_borders <= 1 - len(again) / 11


def test_a_lost_object_is_found():
    """From the middle on the background alone."""
    scene = scene_with("up")
    film = render(scene, 4 * FRAMES_PER_CHUNK)
    film[2 * FRAMES_PER_CHUNK :] = np.rint(backdrop_picture(scene.backdrop, 128, 64))
    found = watched(film)
    assert found.whole == pytest.approx(0.5) and found.same_colour == 0.5 and found.same_shape == 0.5
    assert found.smooth_borders == pytest.approx(1 / 3)


def test_jumps_are_measured_in_usual_steps():
    """A path of 2 pixels a frame that skips 9 at the border: 9 over 2 and the reading error's share."""
    x = np.arange(66.0) * 2
    x[33:] += 7
    assert jumps_of(np.stack([x, np.zeros(66)], axis=-1)) == pytest.approx([9 / 2.25])
    x[33] = np.nan
    assert jumps_of(np.stack([x, np.zeros(66)], axis=-1)) == [np.inf]
    assert len(jumps_of(np.zeros((33, 2)))) == 0


def test_unrest_within_chunks_does_not_smooth_their_borders():
    """A few frames that are misread leave a jump what it is, and an object that is elsewhere in each frame has none."""
    x = np.arange(66.0)
    x[33:] += 8
    x[[10, 50]] += 60
    assert jumps_of(np.stack([x, np.zeros(66)], axis=-1)) == pytest.approx([9 / 1.25])
    anywhere = np.random.default_rng(0).uniform((0, 0), (128, 64), (3300, 2))
    assert (jumps_of(anywhere) > 2).mean() > 0.8


@pytest.mark.slow
def test_a_short_film_drifts_from_its_first_half_to_its_second():
    film = render(scene_with("left"), 240).astype(float)
    faded = np.rint(film * np.linspace(1, 0.5, 240)[:, None, None, None]).astype(np.uint8)
    brightest = film[0, 0, 0].max() / 255
    assert watched(faded).drift_percent == pytest.approx(100 * 0.25 * brightest, rel=0.1)


def test_a_film_without_an_object_in_its_first_chunk_shows_no_motion():
    scene = scene_with("left")
    film = render(scene, 2 * FRAMES_PER_CHUNK)
    film[1:FRAMES_PER_CHUNK] = np.rint(backdrop_picture(scene.backdrop, 128, 64))
    found = score(film, labels(scene.segments[0]))
    assert found.colour and not found.motion
    film[0] = film[1]
    assert not score(film, labels(scene.segments[0])).motion


def test_wrong_films_have_no_marks():
    """Each scene's film against what another prompt asked for."""
    first, other = scene_with("left"), scene_with("still", "night")
    found = score(render(first, FRAMES_PER_CHUNK), labels(other.segments[0]))
    assert not found.background and not found.motion
    assert adherence([found])["all_four"] == 0 and adherence([found])["smooth_borders"] is None


def two_worlds(shown_from: int, start: int, frames: int = 4 * FRAMES_PER_CHUNK):
    """Return the measurement of a film that switches to another scene at frame `shown_from`, where the prompt
    changed at frame `start`."""
    here, there = scene_with("left"), scene_with("still", "night")
    film = np.concatenate([render(here, shown_from), render(there, frames)[shown_from:]])
    return change(film, labels(here.segments[0]), labels(there.segments[0]), start)


@pytest.mark.slow
def test_a_change_of_prompts_is_found_when_it_shows():
    found = two_worlds(66, start=66)
    assert found.held and found.chunks == 0 and found.stayed
    late = two_worlds(99, start=66)
    assert late.held and late.chunks == 1 and late.stayed
    early = two_worlds(33, start=66)
    assert not early.held and early.chunks == 0
    never = two_worlds(132, start=66)
    assert never.held and never.chunks is None and not never.stayed
    assert changes([found, late, early, never], due=0) == {"films": 4, "held": 0.75, "in_time": 0.5, "stayed": 0.75}
    assert changes([found, late, early, never], due=1)["in_time"] == 0.75


@pytest.mark.slow
def test_long_films_together():
    films = [watched(render(scene_with(motion), 330)) for motion in ("left", "still")]
    together = lasting(films)
    assert together["films"] == 2 and together["borders"] == 18
    assert together["drift_percent"] == max(film.drift_percent for film in films)


@pytest.mark.slow
def test_command(tmp_path, capsys, monkeypatch):
    """Whatever the weights show, here random ones, the whole way runs, and every figure is a number."""
    spec = replace(SPECS["tiny"], transformer={**SPECS["tiny"].transformer, "num_layers": 2}, vae=SMALL_VAE)
    model = write_checkpoint(tmp_path / "model", spec)
    monkeypatch.setattr(bench_quality, "SHOT_CHUNKS", 3)  # as long as a blend
    sheet, out = tmp_path / "sheet.png", tmp_path / "quality.json"
    short = ["--prompts", "2", "--chunks", "2", "--minutes", "0.03", "--films", "1", "--changes", "1"]
    command = [
        "bench",
        "quality",
        "-m",
        str(model),
        *short,
        "--steps",
        "1,1,1",
        "--sheet",
        str(sheet),
        "--out",
        str(out),
    ]
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(out.read_text())
    assert data["steps"] == [1, 1, 1] and data["prompts"]["all"]["films"] == 2
    assert [film["caption"] for film in data["long"]["films"]] == ["a red ball rolls left over green hills"]
    assert data["long"]["borders"] == 1 and 0 <= data["prompts"]["unseen"]["whole"] <= 1
    assert {name: found["due_chunks"] for name, found in data["changes"].items()} == {"cut": 0, "switch": 0, "blend": 3}
    assert all(found["films"] == 1 for found in data["changes"].values())
    assert Image.open(sheet).width > 600


@pytest.mark.parametrize(
    ("flags", "history", "denoiser"),
    [
        ([], History, Denoiser),
        (["--without", "anchor"], AnchorlessHistory, Denoiser),
        (["--without", "relative"], History, AbsoluteDenoiser),
    ],
)
def test_what_films_are_rendered_without(flags, history, denoiser, capsys, monkeypatch):
    """While they are; the report says it too."""
    seen = []
    monkeypatch.setattr(bench_quality, "_adherence", lambda *_: seen.append((engine.History, engine.Denoiser)) or {})
    assert main(["bench", "quality", "--minutes", "0", "--changes", "0", *flags, "--json"]) == 0
    assert seen == [(history, denoiser)] and (engine.History, engine.Denoiser) == (History, Denoiser)
    assert json.loads(capsys.readouterr().out)["without"] == (flags[1] if flags else None)


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["bench", "quality", "--sheet", str(tmp_path / "none" / "sheet.png")]) == 2
    assert "does not exist" in capsys.readouterr().err
