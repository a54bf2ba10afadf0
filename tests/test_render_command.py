"""`helios render` as a user runs it: real processes, real files, exit codes, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helios_cli.cli import main
from helios_cli.film.ffmpeg import program
from helios_cli.film.reading import probe
from helios_cli.film.writer import open_writer
from support.streams import video_stream
from support.waiting import LONGEST


@pytest.fixture
def helios(tmp_path, distilled):
    """Runs `helios` in an empty folder with its own home; returns the finished process."""

    def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "helios_cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "HELIOS_HOME": str(tmp_path / "home"), "HELIOS_MODEL": str(distilled), **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )

    return run


@pytest.fixture
def inside(tmp_path, distilled, monkeypatch, capfd):
    """Runs a command in this process, where torch is loaded; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))

    def run(*arguments: str) -> tuple[int, str]:
        return main(list(arguments)), capfd.readouterr().err

    return run


SMALL = ("--size", "64x64", "--steps", "1,1,1", "--dtype", "float32")


@pytest.mark.process
@pytest.mark.slow
def test_a_prompt_becomes_an_mp4_that_players_open(helios, tmp_path):
    result = helios("render", "A red circle, moving!", *SMALL, "--seconds", "2")
    assert result.returncode == 0, result.stderr
    film = tmp_path / "a-red-circle-moving.mp4"
    info, stream = probe(film), video_stream(film)
    assert (info.width, info.height, info.fps, info.pix_fmt) == (64, 64, 24, "yuv420p")
    assert stream.startswith("h264 (High) ") and "yuv420p(tv, bt709, " in stream
    assert result.stdout == ""
    assert "48 frames" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"home"} == {film.name, f"{film.stem}.json"}


@pytest.mark.process
@pytest.mark.slow
def test_events_are_one_json_object_a_line(helios):
    result = helios("render", "a red circle", *SMALL, "--frames", "40", "--json")
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {event["version"] for event in events} == {1}
    assert events[0]["event"] == "film_started"
    assert events[-1]["event"] == "film_done"
    assert events[-1]["frames"] == 40
    assert [event["frames"] for event in events if event["event"] == "chunk_done"] == [33, 40]


@pytest.mark.process
@pytest.mark.slow
def test_quiet_says_nothing(helios):
    result = helios("render", "a red circle", *SMALL, "-q")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.process
@pytest.mark.slow
def test_standard_input_and_a_text_file_are_read(helios, inside, tmp_path):
    result = helios("render", "-", *SMALL, "-o", "in.mkv", stdin="[1s] a red circle\n\n[1s] a green square\n")
    assert result.returncode == 0, result.stderr
    assert video_stream(tmp_path / "in.mkv").startswith("ffv1")
    (tmp_path / "shots.txt").write_text("a red circle\n\na green square\n")
    assert inside("render", "shots.txt", *SMALL, "--frames", "66")[0] == 0
    assert probe(tmp_path / "shots.mp4").duration == pytest.approx(66 / 24, abs=0.01)


@pytest.mark.process
@pytest.mark.slow
def test_same_seed_same_film(helios, inside, tmp_path):
    """In another process, which takes no chunks of the first."""
    assert helios("render", "a red circle", *SMALL, "--seed", "5", "-o", "a/").returncode == 0
    for name, seed in (("b", "5"), ("c", "6")):
        assert inside("render", "a red circle", *SMALL, "--no-cache", "--seed", seed, "-o", f"{name}/")[0] == 0
    a, b, c = ([file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.slow
def test_a_finished_film_is_not_overwritten_unless_forced(inside, tmp_path):
    (tmp_path / "out.mp4").write_bytes(b"precious")
    code, said = inside("render", "a red circle", *SMALL, "-o", "out.mp4")
    assert code == 2
    assert "--force" in said
    assert (tmp_path / "out.mp4").read_bytes() == b"precious"
    assert inside("render", "a red circle", *SMALL, "-o", "out.mp4", "--force")[0] == 0
    assert video_stream(tmp_path / "out.mp4").startswith("h264")


def test_a_film_goes_into_a_folder_that_is_there(distilled, tmp_path, monkeypatch):
    """One film goes into a folder as several do: a shell pattern may match one file. A slash, or pictures in the
    folder, mean PNG."""
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    Path("films/earlier.mp4").touch()
    for output in ("films", "frames", "frames/"):  # the first is there, the second is not
        assert (
            main(["render", "a boat", "-m", str(distilled), *SMALL, "--frames", "1", "-o", output, "--force", "-q"])
            == 0
        )
    assert sorted(path.name for path in Path("films").iterdir()) == ["a-boat.json", "a-boat.mp4", "earlier.mp4"]
    assert (
        main(["render", "a boat", "-m", str(distilled), *SMALL, "--frames", "2", "-o", "frames", "--force", "-q"]) == 0
    )
    assert [path.name for path in sorted(Path("frames").iterdir())] == ["frame_000001.png", "frame_000002.png"]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A clip, links to it, a picture in a folder of frames, and a recipe that starts with that."""
    monkeypatch.chdir(tmp_path)
    with open_writer("in.mp4", size=(64, 64), fps=24) as writer:
        writer.write(np.zeros((40, 64, 64, 3), np.uint8))
    with open_writer("frames/", size=(64, 64), fps=24) as writer:
        writer.write(np.zeros((2, 64, 64, 3), np.uint8))
    os.link("in.mp4", "hard.mp4")
    Path("soft.mp4").symlink_to("in.mp4")
    Path("shots.toml").write_text('version = 1\n[[shot]]\nprompt = "a ball"\nimage = "frames/frame_000002.png"\n')
    Path("a-ball.takes.png").write_bytes(Path("frames/frame_000001.png").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        "a-ball --video in.mp4 -o in.mp4",
        "a-ball --video ./in.mp4 -o soft.mp4",
        "a-ball --video soft.mp4 -o in.mp4",
        "a-ball --video hard.mp4 -o in.mp4",
        "a-ball --image frames/frame_000001.png -o frames/",
        "shots.toml -o frames/",
        "a-ball --image a-ball.takes.png --takes 2",
    ],
)
def test_a_film_does_not_take_the_place_of_what_it_is_made_from(words, inputs, capsys):
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}
    assert main(["render", *words.split(), "--force"]) == 2
    assert "which it is made from" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()} == before


def test_a_film_that_is_made_again_does_not_take_the_place_of_itself(distilled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["render", "a ball", "-m", str(distilled), *SMALL, "--frames", "1", "-o", "film.mp4", "-q"]) == 0
    film = Path("film.mp4").read_bytes()
    assert main(["render", "--from", "film.mp4", "-o", "film.mp4", "--force"]) == 2
    assert "film.mp4, which it is made from" in capsys.readouterr().err and Path("film.mp4").read_bytes() == film


@pytest.mark.slow
def test_one_bad_film_does_not_stop_the_others(inside, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "good.txt").write_text("a red circle\n")
    (tmp_path / "bad.toml").write_text('version = 1\nmodel = "./nowhere"\n[[shot]]\nprompt = "a red circle"\n')
    code, said = inside("render", "bad.toml", "good.txt", *SMALL, "-o", "out")
    assert code == 1
    assert "1 of 2 films failed: bad" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.json", "good.mp4"]
    assert inside("render", "bad.toml", "good.txt", *SMALL, "-o", "out", "--force", "--on-error", "stop")[0] == 2


def test_a_prompt_that_is_cut_is_an_error_under_strict(distilled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["render", "red " * 600, "-m", str(distilled), *SMALL, "-o", "long.mp4"]
    assert main([*arguments, "--strict"]) == 2
    assert "shot 1: the prompt is longer than 512 tokens" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main(arguments) == 0
    assert "longer than 512 tokens" in capsys.readouterr().err


BAD_INPUT = [
    (["a boat", "--size", "100x64"], 2, "the nearest sizes"),
    (["a boat", "--size", "huge"], 2, "WIDTHxHEIGHT"),
    (["a boat", "--seconds", "-3"], 2, "not a time"),
    (["a boat", "--seconds", "3", "--frames", "9"], 2, "--seconds and --frames"),
    (["a boat", "--steps", "50"], 2, "3 stages"),
    (["a boat", "--crf", "0"], 2, "lossless"),
    (["a boat", "-o", "film.avi"], 2, ".mp4"),
    (["a boat", "-o", "nowhere/film.mp4"], 2, "mkdir"),
    (["a boat", "--image", "no.png"], 2, "no.png"),
    (["no-such-file.toml"], 2, "no-such-file.toml"),
    (["a boat", "-m", "distiled"], 2, "distilled"),
    (["a boat", "--device", "cuda:9"], 3, "cuda:9"),
    (["a boat", "--nonsense"], 2, "nonsense"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), BAD_INPUT, ids=[" ".join(case[0]) for case in BAD_INPUT])
def test_bad_input_is_named_and_nothing_is_left_behind(arguments, code, said, distilled, tmp_path, monkeypatch, capsys):
    """In this process, through the one boundary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_MODEL", str(distilled))
    assert main(["render", *arguments]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert "Traceback" not in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_cannot_be_read_is_found_before_a_model_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clip = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=24", "-frames:v", "24", "short.mp4"]
    subprocess.run([program().path, "-v", "error", *clip], check=True, stdin=subprocess.DEVNULL)
    Path("sea.png").write_text("not a picture")
    Path("film.toml").write_text('[[shot]]\nprompt = "a"\nvideo = "short.mp4"\n')
    for arguments, said in (
        (["a boat", "--image", "sea.png"], "--image: sea.png is not a picture"),
        (["a boat", "--video", "short.mp4"], "has 24 frames at 24 fps; 33 are needed"),
        (["film.toml"], "film.toml:3: shot 1, `video`: the video"),
    ):
        assert main(["render", *arguments, "-m", "nowhere/unknown"]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main(["recipe", "check", "film.toml"]) == 2
    assert "33 are needed" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.slow
def test_a_damaged_weight_file_is_found_before_anything_is_loaded(helios, distilled, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(distilled, broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = helios("render", "a boat", "-m", "broken")
    assert result.returncode == 4
    assert "diffusion_pytorch_model.safetensors" in result.stderr
    assert "truncated" in result.stderr
