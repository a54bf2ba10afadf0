"""Takes: that each is the chunk its film begins with, what they are made of, and the contact sheet."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helios_cli.cli import main
from helios_cli.errors import InputError
from helios_cli.film.takes import TakesFiles, check_shot, takes_of, write_sheet
from helios_cli.film.writer import open_writer
from helios_cli.model.dit import HeliosDiT
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import Arithmetic, chunk_fingerprints
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.schema import Recipe
from helios_cli.recipe.settings import ModelDefaults, resolve_settings
from helios_cli.recipe.values import MAX_SEED
from support.reruns import decoded, ended_at

SHOTS = [
    {"prompt": "a red circle", "seconds": 2},
    {"prompt": "a green square", "seconds": 2},
    {"prompt": "a blue ball", "seconds": 0.5, "transition": "cut", "seed": 8},
    {"prompt": "a red ball", "seconds": 2},
    {"prompt": "a green ball", "seconds": 2, "transition": "cut"},
]


def film_of(**keys) -> Film:
    return Film("film", "film.toml", Recipe.model_validate({"shot": SHOTS, **keys}), Path("/films"))


def plan_of(film: Film, **flags) -> Plan:
    return plan_film(
        film, resolve_settings(film.recipe, RenderOptions(**flags), ModelDefaults((64, 64), (1, 1, 1), 1.0))
    )


def prints(plan: Plan) -> list[str]:
    return chunk_fingerprints(plan, "weights", Arithmetic("cpu", "float32", "2"))


# What they are


def test_a_take_is_the_chunk_its_film_would_begin_with():
    film = film_of()
    for take in takes_of(plan_of(film, seed=7), 3):
        assert prints(take.plan) == prints(plan_of(film, seed=take.seed))[:1]
        assert [chunk.num_frames for chunk in take.plan.chunks] == [33]
    assert [take.seed for take in takes_of(plan_of(film, seed=7), 3)] == [7, 8, 9]


@pytest.mark.parametrize(("shot", "first_seed"), [(3, 8), (5, 42)])
def test_takes_of_a_cut_are_the_chunk_the_recipe_would_have_there(shot, first_seed):
    """The same holds where the cut's shot is so short that its chunk belongs to the next shot."""
    film = film_of()
    takes = takes_of(plan_of(film), 2, shot)
    assert [take.seed for take in takes] == [first_seed, first_seed + 1]
    for take in takes:
        changed = [{**keys, "seed": take.seed} if keys is SHOTS[shot - 1] else keys for keys in SHOTS]
        whole = plan_of(film_of(shot=changed))
        start = whole.shots[shot - 1].start_frame
        index = next(chunk.index for chunk in whole.chunks if chunk.start_frame == start)
        assert prints(take.plan) == [prints(whole)[index]]
        assert take.plan.num_frames == whole.chunks[index].num_frames


def test_a_short_film_has_short_takes():
    assert [take.plan.num_frames for take in takes_of(plan_of(film_of(), frames=5), 2)] == [5, 5]


@pytest.mark.parametrize(("shot", "said"), [(2, "blend"), (4, "blend"), (6, "5 shots")])
def test_only_the_first_shot_and_cuts_have_takes(shot, said):
    with pytest.raises(InputError, match=said):
        check_shot(film_of(), shot)


def test_shots_behind_the_films_end_and_seeds_behind_the_last_are_refused():
    with pytest.raises(InputError, match="after the film's end"):
        takes_of(plan_of(film_of(), frames=40), 2, 5)
    assert takes_of(plan_of(film_of(), seed=MAX_SEED), 1)
    with pytest.raises(InputError, match="too many"):
        takes_of(plan_of(film_of(), seed=MAX_SEED), 2)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film/"])
def test_sheet_and_clips_stand_beside_the_film(name, tmp_path):
    files = TakesFiles.of(f"{tmp_path}/{name}", force=False)
    assert (files.sheet, files.clip(3)) == (tmp_path / "film.takes.png", tmp_path / "film.takes" / "seed-3.mp4")


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "film.takes.png").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"film\.takes\.png exists"):
        TakesFiles.of(tmp_path / "film.mp4", force=False)
    TakesFiles.of(tmp_path / "film.mp4", force=True)
    (tmp_path / "film.takes").write_bytes(b"precious")
    with pytest.raises(InputError, match="not a folder"):
        TakesFiles.of(tmp_path / "film.mp4", force=True)


def test_a_film_of_the_user_s_under_a_clip_s_name_stays(tmp_path):
    files = TakesFiles.of(tmp_path / "film.mp4", force=False)
    files.make_folder()
    for seed, title in ((3, "seed-3"), (4, "holidays")):
        with open_writer(files.clip(seed), size=(64, 64), fps=24) as writer:
            writer.write(np.zeros((2, 64, 64, 3), np.uint8))
            writer.describe({"title": title}, ())
    with pytest.raises(InputError, match=r"seed-4\.mp4, whose title is not that of a take, exists"):
        TakesFiles.of(tmp_path / "film.mp4", force=False)
    TakesFiles.of(tmp_path / "film.mp4", force=True)
    files.clip(4).unlink()
    TakesFiles.of(tmp_path / "film.mp4", force=False)


def test_the_sheet_has_small_pictures_in_the_clips_colours(tmp_path):
    """Flat frames, so that the expected pixels are the ones written: grey to grey has no chroma to lose."""
    plan = replace(plan_of(film_of(), frames=20), size=(480, 256))
    takes = takes_of(plan, 2)
    files = TakesFiles.of(tmp_path / "film.mp4", force=False)
    files.make_folder()
    for take in takes:
        with open_writer(files.clip(take.seed), size=plan.size, fps=24) as writer:
            writer.write(np.stack([np.full((256, 480, 3), 10 * number + take.seed, np.uint8) for number in range(20)]))
    write_sheet(files, takes)
    assert sorted(os.listdir(tmp_path)) == ["film.takes", "film.takes.png"]
    with Image.open(files.sheet) as sheet:
        assert sheet.height == 8 + 2 * (128 + 8)
        for row, take in enumerate(takes):
            for column, number in enumerate((0, 4, 8, 11, 15, 19)):
                right = sheet.width - 6 * 248 + column * 248
                shown = sheet.getpixel((right + 120, 8 + row * 136 + 64))
                # 2: the steps of limited range, 219 of 255, and the coder's at crf 17.
                assert shown == pytest.approx((10 * number + take.seed,) * 3, abs=2)


def test_a_clip_that_is_not_whole_is_named(tmp_path):
    takes = takes_of(plan_of(film_of()), 1)
    files = TakesFiles.of(tmp_path / "film.mp4", force=False)
    files.make_folder()
    files.clip(42).write_bytes(b"no clip")
    with pytest.raises(InputError, match=r"seed-42\.mp4"):
        write_sheet(files, takes)
    with open_writer(files.clip(42), size=(64, 64), fps=24) as writer:
        writer.write(np.zeros((takes[0].plan.num_frames - 1, 64, 64, 3), np.uint8))
    with pytest.raises(InputError, match=r"seed-42\.mp4 has fewer than the 33 frames"):
        write_sheet(files, takes)
    assert not files.sheet.exists()


# The command, from prompt to sheet to film

SMALL = ["--size", "64x64", "--steps", "1,1,1", "--dtype", "float32"]


@pytest.fixture
def helios(tmp_path, checkpoints, monkeypatch, capfd):
    """Runs `helios render` with --json in an empty folder; returns its code, its events, and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(checkpoints("distilled")))

    def run(*arguments: str) -> tuple[int, list[dict], str]:
        code = main(["render", *arguments, *SMALL, "--json"])
        told = capfd.readouterr()
        return code, [json.loads(line) for line in told.out.splitlines()], told.err

    return run


@pytest.fixture
def model_calls(monkeypatch):
    """Counts the calls of the transformer."""
    calls = []
    forward = HeliosDiT.forward
    monkeypatch.setattr(HeliosDiT, "forward", lambda self, *args: (calls.append(1), forward(self, *args))[1])
    return calls


def of_kind(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


@pytest.mark.slow
def test_the_sheet_shows_the_clips(helios, tmp_path):
    code, events, _ = helios("a red circle", "--takes", "3", "--frames", "50", "--seed", "5")
    assert code == 0
    assert [event["film"] for event in of_kind(events, "film_started")] == [
        f"a-red-circle, seed {n}" for n in (5, 6, 7)
    ]
    with Image.open(tmp_path / "a-red-circle.takes.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"), np.int16)
    height, width = pixels.shape[:2]
    right = width - 6 * (64 + 8)  # six frames of 64 pixels with gaps of 8 end at the right edge
    clips = [decoded(tmp_path / "a-red-circle.takes" / f"seed-{seed}.mp4") for seed in (5, 6, 7)]
    frames = np.concatenate(clips).reshape(99, 64, 64, 3).astype(np.int16)
    for row in range(3):
        top = 8 + row * 72
        for column, number in enumerate((0, 6, 13, 19, 26, 32)):
            left = right + column * 72
            distances = np.abs(frames - pixels[top : top + 64, left : left + 64]).mean((1, 2, 3))
            assert distances.argmin() == 33 * row + number
        assert (pixels[top : top + 64, : right - 8] > 200).any()  # the label
    assert height == 8 + 3 * 72


@pytest.mark.slow
def test_the_chosen_take_continues_from_the_cache(helios, tmp_path, model_calls):
    helios("a red circle", "--takes", "2", "--frames", "50", "--seed", "5")
    model_calls.clear()
    helios("a red circle", "--frames", "50", "--seed", "8", "-o", "other.mp4", "--no-cache")
    calls_of_both_chunks = len(model_calls)
    model_calls.clear()
    code, events, _ = helios("a red circle", "--frames", "50", "--seed", "6")
    assert code == 0
    assert [(event["chunk"], event["source"]) for event in of_kind(events, "chunks_reused")] == [(0, "cache")]
    assert [event["chunk"] for event in of_kind(events, "chunk_done")] == [1]
    assert 0 < len(model_calls) < calls_of_both_chunks
    film, take = decoded(tmp_path / "a-red-circle.mp4"), decoded(tmp_path / "a-red-circle.takes" / "seed-6.mp4")
    assert len(film) == 50
    assert np.array_equal(film[:33], take)
    helios("a red circle", "--frames", "50", "--seed", "6", "-o", "fresh.mp4", "--no-cache")
    assert np.array_equal(film, decoded(tmp_path / "fresh.mp4"))


@pytest.mark.slow
def test_a_take_that_fills_the_film_leaves_nothing_to_render(helios, model_calls):
    """The same holds for a lossless film, whose piece is encoded anew from the take's latents."""
    helios("a red circle", "--takes", "1", "-o", "film.mkv")
    model_calls.clear()
    assert helios("a red circle", "-o", "film.mkv")[0] == 0
    assert not model_calls


@pytest.mark.slow
def test_the_line_to_type_is_the_command_with_the_seed(helios):
    line = ["a red circle", "--takes", "2", "--frames", "40", "--seed", "5", "--negative", "no text"]
    notices = [event["message"] for event in of_kind(helios(*line)[1], "notice")]
    assert notices[-1].endswith(
        "helios render 'a red circle' --frames 40 --size 64x64 --negative 'no text' --steps 1,1,1 "
        "--dtype float32 --json --seed 6"
    )
    assert "kept chunk" in notices[-1]
    again = helios(*line, "--force", "--no-cache")[1]
    assert "kept chunk" not in of_kind(again, "notice")[-1]["message"]
    assert len(of_kind(again, "chunk_done")) == 2


@pytest.mark.slow
def test_takes_of_a_cut_and_the_film_that_uses_one(helios, tmp_path):
    recipe = (
        'version = 1\nframes = 50\n[[shot]]\nprompt = "a red circle"\nseconds = 1\n'
        '[[shot]]\nprompt = "a green square"\ntransition = "cut"\n'
    )
    (tmp_path / "film.toml").write_text(recipe)
    _, events, _ = helios("film.toml", "--takes", "2", "--shot", "2")
    assert sorted(os.listdir(tmp_path / "film.takes")) == ["seed-42.mp4", "seed-43.mp4"]
    assert "give shot 2 of film.toml the seed 43" in of_kind(events, "notice")[-1]["message"]
    (tmp_path / "film.toml").write_text(recipe + "seed = 43\n")
    events = helios("film.toml")[1]
    assert [event["chunk"] for event in of_kind(events, "chunks_reused")] == [1]
    assert [event["chunk"] for event in of_kind(events, "chunk_done")] == [0]
    film = decoded(tmp_path / "film.mp4")
    assert np.array_equal(film[24:], decoded(tmp_path / "film.takes" / "seed-43.mp4"))


@pytest.mark.slow
def test_a_finished_sheet_stays_unless_forced_and_a_finished_film_is_no_hindrance(helios, tmp_path):
    (tmp_path / "a-red-circle.mp4").write_bytes(b"film")
    assert helios("a red circle", "--takes", "1")[0] == 0
    sheet = (tmp_path / "a-red-circle.takes.png").read_bytes()
    code, _, said = helios("a red circle", "--takes", "1", "--seed", "3")
    assert (code, "--force" in said) == (2, True)
    assert (tmp_path / "a-red-circle.takes.png").read_bytes() == sheet
    assert helios("a red circle", "--takes", "1", "--seed", "3", "--force")[0] == 0
    assert (tmp_path / "a-red-circle.takes.png").read_bytes() != sheet
    assert (tmp_path / "a-red-circle.mp4").read_bytes() == b"film"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_takes_go_on(number, helios, tmp_path, capfd):
    """A real process, ended after its first take."""
    command = ["render", "a red circle", *SMALL, "--takes", "100", "--json"]
    ended, rest = ended_at(
        lambda line: json.loads(line)["event"] == "film_done", number, lambda: main(command), stream="stdout"
    )
    said = capfd.readouterr().err
    assert ended == 130
    done = 1 + sum(json.loads(line)["event"] == "film_done" for line in rest.splitlines())
    if counted := re.search(r"stopped: (\d+) of 100 takes are done", said):  # not if it came while an event was shown
        assert int(counted[1]) in (done - 1, done)
    assert list(tmp_path.glob("*.png")) == []
    code, events, _ = helios("a red circle", "--takes", str(done + 1))
    assert code == 0
    assert len(of_kind(events, "chunks_reused")) >= done
    assert len(of_kind(events, "chunk_done")) <= 1
    clips = [f"seed-{42 + take}.mp4" for take in range(done + 1)]
    assert sorted(os.listdir(tmp_path / "a-red-circle.takes")) == sorted(clips)
    assert (tmp_path / "a-red-circle.takes.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a boat", "--shot", "1"], "--takes"),
        (["a boat", "--takes", "0"], "--takes"),
        (["a boat", "--takes", "2", "--shot", "2"], "1 shot"),
        (["a boat", "a train", "--takes", "2", "-o", "."], "one film"),
        (["a boat", "--takes", "2", "--dry-run"], "--dry-run"),
        (["a boat", "--takes", "2", "--export", "otio"], "--export"),
        (["a boat", "--takes", "2", "--check"], "--check"),
        (["--from", "film.mp4", "--takes", "2"], "--from"),
        (["a boat", "--takes", "2", "-o", "nowhere/film.mp4"], "mkdir"),
        (["a boat", "--takes", "2", "--seed", str(MAX_SEED)], "too many"),
    ],
)
def test_bad_input_is_named_and_nothing_is_left_behind(helios, tmp_path, arguments, said):
    code, events, told = helios(*arguments)
    assert (code, events) == (2, [])
    assert said in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_several_films_end_in_a_table_on_stderr(tmp_path, checkpoints, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(checkpoints("distilled")))
    (tmp_path / "bad.toml").write_text('version = 1\nmodel = "./nowhere"\n[[shot]]\nprompt = "a red circle"\n')
    sources = ["a red circle", "bad.toml", "a green square"]
    assert main(["render", *sources, *SMALL, "-o", "."]) == 1
    told = capsys.readouterr()
    head, *rows = [line for line in told.err.splitlines() if line.startswith(("film  ", "a-", "bad"))][-4:]
    assert head.split() == ["film", "result", "frames", "seconds", "frames/s", "output", "or", "error"]
    assert [row.split()[:2] for row in rows] == [
        ["a-red-circle", "done"],
        ["bad", "failed"],
        ["a-green-square", "done"],
    ]
    assert (rows[0].split()[2], rows[0].split()[-1]) == ("33", "a-red-circle.mp4")
    assert "./nowhere" in rows[1]
    assert told.out == ""
    assert main(["render", *sources, *SMALL, "-o", ".", "--force", "--on-error", "stop"]) == 2
    stopped = capsys.readouterr().err
    assert "reused" in stopped
    assert "not tried" in stopped
    for silent in ("--quiet", "--json"):
        main(["render", *sources, *SMALL, "-o", ".", "--force", silent])
        assert "frames/s" not in capsys.readouterr().err
