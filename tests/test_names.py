"""Names as shells, scripts and other systems hand them over: too long, with an end that cannot be seen, of nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from helios_cli.cli import main

LONG = "x" * 300
PICTURE = Path(__file__).resolve().parents[1] / "recipes" / "first_frame.png"


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Runs a command that has to end with 2 in a folder with a few files; returns what it says, in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    Path("prompts.txt").write_text("a red ball\n")
    Path("film.toml").write_text('[[shot]]\nprompt = "a red ball"\n')
    shutil.copy(PICTURE, "sea.png")
    os.symlink("nowhere.png", "dangling.png")

    def run(*arguments: str) -> str:
        before = sorted(os.listdir())
        assert main([*arguments]) == 2
        assert sorted(os.listdir()) == before
        return " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        *(["plan", "x", "-o", name] for name in (f"{LONG}.mp4", LONG, f"{LONG}/", f"{LONG}/x.mp4")),
        ["render", "x", "-o", f"{LONG}.mkv"],
        ["live", "x", "-o", f"{LONG}.mp4"],
        ["plan", "x", "--image", f"{LONG}.png"],
        ["plan", "x", "--video", f"{LONG}.mp4"],
        ["render", "--from", f"{LONG}.mp4"],
        ["render", "--from", LONG],
        ["plan", "x", "-m", f"./{LONG}"],
        ["models", "info", f"/{LONG}/y"],
        ["plan", f"{LONG}.toml"],
        ["recipe", "check", f"{LONG}.csv"],
        ["recipe", "convert", "film.toml", f"{LONG}.yaml"],
        ["train", f"{LONG}.toml"],
        ["check", f"{LONG}.mp4"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_name_that_is_too_long_is_bad_input(said, arguments):
    told = said(*arguments)
    assert "ile name too long" in told and "x" * 100 in told


def test_a_long_path_of_a_missing_recipe_is_no_prompt(said):
    for path in ("/nowhere/" + "y/" * 200 + "film.toml", "films of " + "y/" * 200 + "boat.txt", "./" + "boats/" * 80):
        assert "no such file" in said("plan", path)


@pytest.mark.parametrize(
    "name", ["prompts.txt\r", "prompts.txt ", "prompts.txt\n", "prompts.txt\u200b", "\ufeffprompts.txt"]
)
@pytest.mark.parametrize("command", ["plan", "live"])
def test_a_source_whose_name_has_an_end_that_cannot_be_seen(said, command, name):
    told = said(command, name)
    shown = f'"{name}"' if name.endswith(" ") else name.encode("unicode_escape").decode()
    assert f"error: {shown}: no such file" in told
    assert command == "live" or "hint: did you mean prompts.txt?" in told


@pytest.mark.parametrize(
    ("flag", "name", "shown", "meant"),
    [
        ("--image", "sea.png\r", r"sea.png\r", "sea.png"),
        ("--image", "sea.png ", '"sea.png "', "sea.png"),
        ("-m", "tiny\r", r"tiny\r", "tiny"),
        ("-o", "film.mp4\r", r"film.mp4\r", "write film.mp4"),
        ("-o", "film.mp4 ", '"film.mp4 "', "write film.mp4"),
        ("-o", "fi\u200blm.mkv", r"fi\u200blm.mkv", "write film.mkv"),
        ("-o", "\u202efilm.mp4", r"\u202efilm.mp4", "write film.mp4"),
        ("-o", "f\nilm.mp4", r"f\nilm.mp4", "write film.mp4"),
        ("-o", "\x1b[31m.mp4", r"\x1b[31m.mp4", "write [31m.mp4"),
    ],
)
def test_a_flag_whose_name_is_not_as_it_looks(said, flag, name, shown, meant):
    told = said("plan", "x", flag, name)
    assert shown in told and meant in told.partition("hint: ")[2]


def test_names_that_people_have_are_taken(said, tmp_path):
    (tmp_path / "my films ").mkdir()
    for name in ("my films /x.mp4", "نام\u200cها.mp4", ".hidden.mp4", os.fsdecode(b"caf\xe9.mp4"), "my films "):
        assert main(["plan", "a red ball", "-m", "tiny", "-o", name]) == 0, name


@pytest.mark.parametrize("name", ["", " ", ".mp4", "films/.MKV"])
def test_a_film_without_a_name_is_refused(said, name):
    assert "the film has no name" in said("plan", "x", "-o", name)


def test_what_is_missing_is_called_what_it_is(said):
    assert "dangling.png: a link to nowhere.png, which does not exist" in said("plan", "x", "--image", "dangling.png")
    for arguments in (["--image", "https://a.org/x.png"], ["--video", "http://a.org/x"], ["https://a.org/x.toml"]):
        assert "only local files are read hint: download it first" in said("plan", "x", *arguments)
    assert "only local files" in said("render", "--from", "https://a.org/x.mp4")
    assert "films are written to local files" in said("plan", "x", "-o", "s3://bucket/x.mp4")


def test_prompts_that_begin_alike_are_films_with_numbers(said, capsys):
    words = "a red ball rolls over a very long wooden table towards the far "  # longer than a name
    assert main(["recipe", "check", words + "left", words + "right", words + "wall", "a boat"]) == 0
    assert main(["plan", words + "left", words + "right", "-m", "tiny"]) == 0
    begun = "a-red-ball-rolls-over-a-very-long-wooden-table-towards-the-f"
    titles = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith(begun)]
    assert titles == [begun, f"{begun}-2"]
    assert "leave out the source that is given twice" in said("plan", "a boat", "a boat")


@pytest.mark.parametrize("before", [["render", "--from"], ["plan", "x", "-o"], ["check"]], ids=" ".join)
def test_the_root_folder_is_no_film(said, before):
    assert "/" in said(*before, "/")
