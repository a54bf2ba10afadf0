"""The Python interface: the README's code, what it shares with the command, and what importing it loads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import helios_cli as helios
from helios_cli.cli import main
from helios_cli.film.again import read_again
from support.reruns import decoded
from support.waiting import LONGEST

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
SMALL = {"model": "tiny", "size": "64x64", "steps": "1,1,1", "device": "cpu", "dtype": "float32"}
FLAGS = ["-m", "tiny", "--size", "64x64", "--steps", "1,1,1", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_readme_s_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert Path("ball.mp4").is_file()
    assert names["estimate"].plan.num_frames == 240


def test_a_film_is_the_command_s():
    """Frames, record and events; and what one has rendered the other continues."""
    events = list(helios.render("a red ball", frames=40, output="python.mkv", cache=False, **SMALL))
    assert main(["render", "a red ball", "--frames", "40", "-o", "command.mkv", "--no-cache", *FLAGS, "-q"]) == 0
    assert (decoded(Path("python.mkv")) == decoded(Path("command.mkv"))).all()
    assert read_again(Path("python.mkv")).record.is_same_film(read_again(Path("command.mkv")).record)
    assert isinstance(events[-1], helios.events.FilmDone) and events[-1].frames == 40


def test_a_render_that_is_closed_is_continued():
    film = helios.render("a red ball", frames=66, output="ball.mkv", **SMALL)
    next(event for event in film if isinstance(event, helios.events.ChunkDone))
    film.close()
    events = list(helios.render("a red ball", frames=66, output="ball.mkv", **SMALL))
    (reused,) = [event for event in events if isinstance(event, helios.events.ChunksReused)]
    assert (reused.source, reused.count) == ("journal", 1)


@pytest.mark.slow
def test_films_share_a_session():
    recipe = helios.Recipe(shot=[helios.Shot(prompt="a red ball")])
    with helios.Session() as session:
        list(helios.render(recipe, session=session, frames=1, output="one.mkv", **SMALL))
        models = session.models
        list(helios.render("a green ball", session=session, frames=1, output="two.mkv", **SMALL))
        assert session.models is models


def test_a_path_is_an_output():
    list(helios.render("a red ball", frames=1, output=Path("ball.mkv"), **SMALL))
    assert Path("ball.mkv").is_file()


def test_a_session_follows_the_memory_options_of_each_film():
    with helios.Session() as session:
        list(helios.render("a red ball", session=session, frames=1, output="one.mkv", **SMALL))
        before = session.models.placement.mode
        list(helios.render("a red ball", session=session, frames=1, output="two.mkv", offload="stream", **SMALL))
        assert (before, session.models.placement.mode) == ("none", "stream")


def test_errors_are_those_of_the_command():
    for options, error in (
        ({"takes": 4}, helios.errors.InputError),
        ({"offload": "sometimes"}, helios.errors.InputError),
        ({"model": ""}, helios.errors.InputError),
        ({"size": "huge"}, helios.errors.InputError),
        ({"output": "film.avi"}, helios.errors.InputError),
        ({"model": "./no-such-folder"}, helios.errors.InputError),
    ):
        with pytest.raises(error):
            list(helios.render("a red ball", **{"output": "ball.mkv", **options}))
    with pytest.raises(
        helios.errors.RecipeError if hasattr(helios.errors, "RecipeError") else helios.errors.InputError
    ):
        helios.plan("no-such-file.toml")


@pytest.mark.process
def test_importing_and_planning_leave_torch_alone():
    script = (
        "import json, sys, helios_cli as helios; first = sorted(m for m in sys.modules if '.' not in m);"
        "helios.plan('a red ball', model='tiny', frames=33, output='x.mp4');"
        "print(json.dumps([first, 'torch' in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONGEST, check=True)
    at_import, has_torch = json.loads(run.stdout)
    assert not {"torch", "numpy", "pydantic", "typer", "rich"} & set(at_import) and not has_torch
