"""`helios live` as a user runs it: real pipes, real files, and real processes where one is stopped or killed."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helios_cli.cli import main
from helios_cli.engine import models as models_module
from helios_cli.engine import session
from helios_cli.engine.models import Models
from helios_cli.film.journal import recorded_chunks
from helios_cli.film.target import Target
from helios_cli.live.lines import Lines
from helios_cli.live.recipe_file import MARK
from helios_cli.recipe.sources import read_films
from support import reruns
from support.waiting import LONGEST, wait_until

SMALL = ("-m", "tiny", "--size", "64x64", "--steps", "1,1,1")
FAST = ("--hold", "1s")  # one chunk


@pytest.fixture
def live(tmp_path, monkeypatch, capfd):
    """Run `helios live` in-process, in an empty folder, with `lines` on standard input, which stays `open` until
    the end. Returns the exit code, the events, and the messages."""
    monkeypatch.chdir(tmp_path)

    def run(lines: str, *arguments: str, left_open: bool = False) -> tuple[int, list[dict], str]:
        reading, writing = os.pipe()
        with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as writer:
            monkeypatch.setattr(sys, "stdin", stdin)
            writer.write(lines)
            writer.flush()
            if not left_open:
                writer.close()
            code = main(["live", *SMALL, *arguments, "--json"])
            writer.close()
            for thread in threading.enumerate():
                if thread.name == "prompts":
                    thread.join()
        said = capfd.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


@pytest.fixture
def process(tmp_path):
    """Starts `helios live` in an empty folder; `after_chunks` of it waits until so many are done."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "helios_cli", "live", *SMALL, *arguments, "--json"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=tmp_path, text=True, **pipes))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        if one.stdin and one.stdin.closed:
            one.stdin = None
        one.communicate()


def wait_for_chunks(process: subprocess.Popen, count: int) -> None:
    next(line for line in process.stdout if f'"event": "chunk_done", "chunk": {count - 1},' in line)


def rendered_again(output: str) -> np.ndarray:
    """Return the frames of the film that the live film's recipe makes, without chunks from the cache."""
    assert main(["render", "film.toml", "--no-cache", "-q", "-o", output]) == 0
    return reruns.decoded(Path(output))


def of(events: list[dict], name: str) -> list[dict]:
    return [event for event in events if event["event"] == name]


def test_a_later_prompt_is_introduced_too(live):
    """The embedded model knows no harbours; the film goes on, with a notice while it does."""
    code, events, _ = live("[cut] a harbour\n", "a red ball", *FAST, "-o", "film.mkv")
    messages = [event["message"] for event in of(events, "notice")]
    assert code == 0 and any("harbour" in message for message in messages)


@pytest.mark.slow
def test_the_film_is_that_of_the_recipe_beside_it(live, tmp_path):
    """Each transition, and a line that is no prompt: one film, twice, with its chapters and its record."""
    lines = "[blend 2s] a blue square\n# a note\n[cutt] a star\n[cut] a green star\n[switch] a red ball"
    code, events, said = live(lines, "a red ball moves left", *FAST, "-o", "film.mp4")
    assert code == 0
    assert [(taken["prompt"], taken["chunk"], taken["transition"]) for taken in of(events, "prompt_taken")] == [
        ("a red ball moves left", 0, "cut"),
        ("a blue square", 1, "blend"),
        ("a green star", 3, "cut"),
        ("a red ball", 4, "switch"),
    ]
    assert said == (
        "warning: standard input:3: [cutt] is neither a length nor a transition; "
        "write [12s], [cut], [switch], [blend], or both: [cut 12s]\n"
    )
    frames = reruns.decoded(tmp_path / "film.mp4")
    assert len(frames) == events[-1]["frames"] == 5 * 33
    assert np.array_equal(frames, rendered_again("again.mp4"))
    assert (tmp_path / "film.mp4").read_bytes() == (tmp_path / "again.mp4").read_bytes()
    film, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("film", "again"))
    assert film["chunks"] == again["chunks"] and film["fingerprint"] == again["fingerprint"]
    made = {"film.mp4", "film.json", "film.toml", "again.mp4", "again.json"}
    assert {path.name for path in tmp_path.iterdir()} == made


@pytest.mark.slow
def test_a_length_ends_the_film_while_the_input_is_open(live):
    lines = "a red ball\na blue square\na star that comes too late\na ball, too\n"
    code, events, _ = live(lines, *FAST, "--frames", "40", "-o", "film.mkv", left_open=True)
    assert code == 0
    (started,) = of(events, "film_started")
    assert (started["frames"], started["chunks"], started["steps"]) == (40, 2, None)
    assert [taken["chunk"] for taken in of(events, "prompt_taken")] == [0, 1]
    assert "2 prompts came too late for the film" in [notice["message"] for notice in of(events, "notice")]
    frames = reruns.decoded(Path("film.mkv"))
    assert len(frames) == 40
    assert np.array_equal(frames, rendered_again("again.mkv"))


def test_what_nobody_knows_is_null_and_an_earlier_recipe_is_replaced(live, tmp_path, monkeypatch):
    """The model, too: it is loaded while the first prompt is waited for, and nothing of it goes for the next ones."""
    placed, place = [], Models.place
    loaded, wait = [], Lines.wait
    monkeypatch.setattr(Models, "place", lambda models, where: (placed.append((models, where)), place(models, where)))
    monkeypatch.setattr(Lines, "wait", lambda lines: (loaded.append(placed[0][0].is_loaded), wait(lines))[1])
    (tmp_path / "live.toml").write_text(f"{MARK}\n")
    code, events, _ = live("a red ball\n", *FAST)
    assert code == 0
    (started,), (done,) = of(events, "film_started"), of(events, "chunk_done")
    assert [started[key] for key in ("frames", "chunks", "steps")] == [None] * 3
    assert done["chunks"] is None
    assert "a red ball" in (tmp_path / "live.toml").read_text()
    assert loaded == [True]
    assert [(where.mode, where.text_beside) for _, where in placed] == [("none", True)] * 2


@pytest.mark.slow
def test_encoded_prompts_go_when_they_are_over(live, monkeypatch):
    """A film of many prompts keeps no more of them than the limit, and the memory of the others is free."""
    limit, sizes, made = 200_000, [], {}
    want = Models.want

    def watched(models: Models, film: object, texts: Iterable[str]) -> None:
        want(models, film, texts)
        sizes.append(sum(prompt.rows.nbytes for prompt in models.prompts.values()))
        made.update({text: (prompt.rows.nbytes, weakref.ref(prompt.rows)) for text, prompt in models.prompts.items()})

    monkeypatch.setattr(models_module, "PROMPTS_KEPT", limit)
    monkeypatch.setattr(Models, "want", watched)
    prompts = [f"[cut] {'a red ball, ' * 50} scene {number}" for number in range(16)]
    code, *_ = live("\n".join(prompts), "a red ball", *FAST, "-o", "film.mkv")
    longest = max(size for size, _ in made.values())
    assert code == 0 and sum(size for size, _ in made.values()) > 3 * limit > 3 * max(sizes) - 6 * longest
    gc.collect()
    alive = [text for text, (_, rows) in made.items() if rows() is not None]
    assert len(alive) * longest <= limit + 2 * longest


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_make_the_calls_of_a_live_film(live, tmp_path):
    """On a CPU they are processes; while the film waits they wait with it."""
    lines = "[pause]\n[play]\n[cut] a blue square\n"
    code, events, _ = live(lines, "a red ball", *FAST, "--gpus-per-film", "2", "-o", "film.mkv")
    assert code == 0 and [taken["prompt"] for taken in of(events, "prompt_taken")] == ["a red ball", "a blue square"]
    command = re.search(r"#   helios (.*)", (tmp_path / "film.toml").read_text())[1].split()
    assert command == ["render", "film.toml", "--gpus-per-film", "2", "--output", "film.mkv"]
    assert main([*command[:2], "-q", "--no-cache", "--gpus-per-film", "2", "-o", "again.mkv"]) == 0
    assert np.array_equal(reruns.decoded(tmp_path / "film.mkv"), reruns.decoded(tmp_path / "again.mkv"))


@pytest.mark.slow
def test_the_vae_of_a_live_film_may_be_elsewhere(live, monkeypatch):
    """`cpu:0` is another device to PyTorch: chunks are decoded there while the next ones are denoised."""
    with monkeypatch.context() as patch:
        patch.setattr(session, "pick_vae_device", lambda *_: torch.device("cpu", 0))
        code, events, _ = live("[cut] a blue square\n", "a red ball", *FAST, "-o", "film.mkv", "--device", "cpu")
    assert code == 0 and len(of(events, "chunk_done")) == 2
    assert np.array_equal(reruns.decoded(Path("film.mkv")), rendered_again("again.mkv"))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("length", [(), ("--frames", "150")], ids=["open", "given"])
def test_a_killed_film_is_finished_from_its_recipe(process, tmp_path, monkeypatch, length, capfd):
    monkeypatch.chdir(tmp_path)
    film = process("a red ball moves left", *length, "-o", "film.mp4")
    film.stdin.write("[1s] a blue square\n")
    film.stdin.flush()
    wait_for_chunks(film, 4)
    wait_until(lambda: recorded_chunks(Target.of("film.mp4")) >= 3)
    film.kill()
    film.wait()
    assert main(["render", "film.toml", "--json", "-o", "film.mp4"]) == 0
    (reused, *_) = of([json.loads(line) for line in capfd.readouterr().out.splitlines()], "chunks_reused")
    assert reused["source"] == "journal" and reused["count"] >= 3  # the fourth may have been with the encoder still
    frames = reruns.decoded(Path("film.mp4"))
    assert len(frames) == 150 if length else len(frames) >= 4 * 33
    assert np.array_equal(frames, rendered_again("again.mp4"))


@pytest.mark.process
@pytest.mark.slow
def test_a_stopped_film_says_how_to_finish_it(process, live, tmp_path):
    film = process("a red ball", "-o", "film.mp4", "--crf", "30", "--no-cache", "--seed", "3")
    wait_for_chunks(film, 1)
    film.send_signal(signal.SIGTERM)
    said = film.communicate()[1]
    assert film.returncode == 130
    assert "chunks of film.mp4 are safe" in said
    assert "hint: the same command goes on; helios render film.toml --no-cache --crf 30 finishes the film" in said
    assert "#   helios render film.toml --no-cache --crf 30\n" in (tmp_path / "film.toml").read_text()
    assert (tmp_path / "film.partial.mp4").exists()
    code, events, said = live("", "a red ball", "-o", "film.mp4", "--seed", "4")
    assert (code, of(events, "chunk_done")) == (2, [])
    assert "the unfinished film of film.toml was begun with another seed" in said and "--force to start over" in said


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("length", [(), ("--frames", "264")], ids=["open", "given"])
def test_a_killed_film_goes_on_with_the_same_command(process, live, tmp_path, length):
    """The chunks and the running prompt stay, and new prompts follow: the recipe is that of the whole film."""
    film = process("a red ball moves left", *length, "-o", "film.mp4", "--ahead", "none")
    film.stdin.write("[1s] a blue square\n")
    film.stdin.flush()
    wait_for_chunks(film, 4)
    wait_until(lambda: recorded_chunks(Target.of("film.mp4")) >= 3)
    film.kill()
    film.wait()
    lines = "[cut 1s] a green star\n"
    code, events, _ = live(lines, "a red ball moves left", *length, "-o", "film.mp4")
    assert code == 0
    (reused, *_) = of(events, "chunks_reused")
    assert reused["source"] == "journal" and reused["count"] >= 3  # the fourth may have been with the encoder still
    taken = [(one["prompt"], one["transition"]) for one in of(events, "prompt_taken")]
    assert taken == [("a blue square", "blend"), ("a green star", "cut")]
    (film,) = read_films(["film.toml"])
    prompts = [shot.prompt for shot in film.recipe.shots]
    assert prompts == ["a red ball moves left", "a blue square", "a green star"]
    frames = reruns.decoded(Path("film.mp4"))
    assert len(frames) == events[-1]["frames"]
    assert np.array_equal(frames, rendered_again("again.mp4"))


@pytest.mark.process
def test_force_does_not_touch_the_recipe_of_a_film_that_is_being_rendered(process, live, tmp_path):
    film = process("a red ball", "-o", "film.mp4")
    wait_for_chunks(film, 1)
    before = (tmp_path / "film.toml").read_text()
    code, _, said = live("", "a blue square", "-o", "film.mp4", "--force")
    assert code == 3 and "is being rendered by process" in said
    assert "a red ball" in before and "a blue square" not in (tmp_path / "film.toml").read_text()
    film.stdin.close()


@pytest.mark.process
def test_a_prompt_shows_within_ahead_and_a_chunk(process):
    """In seconds of film, from where the playhead was when the line was read: whatever this machine's speed."""
    film = process("a red ball", *FAST, "-o", "film.mp4", "--ahead", "2s")
    events, prompts = [], ["[switch] a blue ball", "[switch] a red star", "[cut] a green ball"]
    for line in film.stdout:
        events.append(json.loads(line))
        if prompts and len(of(events, "playback")) == 12 - 3 * len(prompts):
            film.stdin.write(prompts.pop(0) + "\n")
            film.stdin.flush()
        if len(of(events, "prompt_taken")) == 4 and not film.stdin.closed:
            film.stdin.close()
    longest = 2 + 33 / 24 + 1e-3
    delays = [one["delay"] for one in of(events, "prompt_taken")]
    assert delays[0] is None and len(delays) == 4
    assert all(0 <= delay <= longest for delay in delays[1:])
    assert all(one["delay"] <= longest and one["in_front"] <= longest for one in of(events, "playback"))
    assert film.wait() == 0


@pytest.mark.process
def test_a_stream_s_reader_steers_it_and_ends_it(tmp_path):
    """Standard output has the stream alone, and its end is no error; the recipe makes a file of it."""
    command = [sys.executable, "-m", "helios_cli", "live", *SMALL, "a red ball", *FAST, "-o", "-", "--container", "ts"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    film = subprocess.Popen(command, cwd=tmp_path, **pipes)
    head = film.stdout.read(188 * 20)
    film.stdin.write(b"[pause]\n")  # it ends although nothing is written any more
    film.stdin.flush()
    film.stdout.close()
    said = film.stderr.read().decode()
    assert film.wait(LONGEST) == 0
    assert {head[at] for at in range(0, len(head), 188)} == {0x47}  # packets of a transport stream
    assert "note: whoever read the stream has closed it; kept for later films:" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live.toml"]
    film.stdin.close()
    film.stderr.close()


@pytest.mark.process
def test_ctrl_z_stops_it_and_fg_goes_on(process):
    """The time in between is none of the film's: the playhead stood still."""
    film = process("a red ball", *FAST, "-o", "film.mp4")
    wait_for_chunks(film, 3)
    film.send_signal(signal.SIGTSTP)
    wait_until(lambda: Path(f"/proc/{film.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    film.send_signal(signal.SIGCONT)
    wait_for_chunks(film, 5)
    film.stdin.close()
    film.stdout.read()
    assert film.wait(LONGEST) == 0


@pytest.mark.slow
def test_flags_and_pictures_are_in_the_recipe(live, tmp_path):
    (tmp_path / "films").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "start.png")
    flags = ("--fps", "30", "--seed", "3", "--negative", "grey", "--guidance", "2", "--image", "start.png")
    code, *_ = live("[cut] a blue square\n", "a red ball", *FAST, *flags, "-o", "films/film/")
    assert code == 0
    (film,) = read_films(["films/film.toml"])
    assert film.recipe.to_dict() == {
        **{"version": 1, "model": "tiny", "fps": 30, "size": "64x64", "seed": 3, "negative": "grey"},
        **{"steps": [1, 1, 1], "guidance": 2},
        "shot": [
            {"prompt": "a red ball", "seconds": 1.1, "image": "../start.png"},
            {"prompt": "a blue square", "seconds": 1.1, "transition": "cut"},
        ],
    }
    assert len(list((tmp_path / "films" / "film").iterdir())) == 66
    assert main(["render", "films/film.toml", "--no-cache", "-q", "-o", "again/"]) == 0
    assert np.array_equal(reruns.decoded(tmp_path / "films/film"), reruns.decoded(tmp_path / "again"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hold", "soon"], '--hold: "soon" is not a time'),
        (["--seconds", "3", "--frames", "9"], "both give the film's length"),
        (["[cutt] a ball"], "[cutt] is neither a length nor a transition"),
        ([" "], "the prompt is empty"),
        (["mine.toml"], "helios live < mine.toml takes its lines as prompts"),
        (["-o", "film.avi"], "films cannot be written as .avi"),
        (["-o", "rtmp://host/live"], "-o - | ffmpeg -re -i - -c copy -f flv rtmp://host/live"),
        (["-o", "-", "--json"], "leave out --json"),
        (["--ahead", "soon"], '--ahead: "soon" is not a time'),
        (["-o", "mine.mp4"], "mine.toml exists, and helios live did not write it"),
        (["--image", "none.png"], "no such file"),
        (["-m", "tiny", "--size", "100x100"], "the nearest sizes that work"),
        (["--serve", "eight"], "--serve: 'eight' is not an address of a page"),
        (["--serve", "0", "-o", "film.mkv"], "--serve: browsers play H.264 alone everywhere"),
        (["--serve", "0", "-o", "film/"], "--serve: browsers play H.264 alone everywhere"),
        (["--serve", "0", "--codec", "hevc"], "--serve: browsers play H.264 alone everywhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_is_wrong_is_said_before_a_prompt_is_waited_for(tmp_path, monkeypatch, capfd, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("version = 1\n")
    assert main(["live", *arguments]) == 2
    assert says in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_no_prompt_is_no_film(live, tmp_path):
    code, _, said = live("# nothing\n\n[cut]\n", "-o", "film.mp4")
    assert code == 2
    assert "`prompt`: is empty" in said and "standard input holds no prompt" in said
    assert list(tmp_path.iterdir()) == []
