"""The Python interface: the README's code, what it shares with the command, and what importing it loads."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"size": [128, 64]}, {"size": "128x64"}),
        ({"size": (128, 64)}, {"size": "128x64"}),
        ({"steps": [1, 2, 1]}, {"steps": "1,2,1"}),
        ({"steps": 50}, {"steps": "50"}),
        ({"fps": 12}, {"fps": "12"}),
        ({"frames": 40.0}, {"frames": "40"}),
        ({"frames": np.int64(40)}, {"frames": "40"}),
        ({"seconds": 2}, {"seconds": "0:02"}),
        ({"ram": 32 * 10**9}, {"ram": "32G"}),
        ({"workers": 2}, {"workers": "2"}),
        ({"export": ["otio", "edl"]}, {"export": "otio,edl"}),
        ({"output": Path("ball.mp4")}, {"output": "ball.mp4"}),
        ({"crf": 20, "preview_decoder": Path("a")}, {"crf": "20", "preview_decoder": "a"}),
        ({"lora": [], "through": None}, {}),
    ],
    ids=str,
)
def test_values_are_taken_as_the_words_of_the_flags_are(option, words):
    assert helios.RenderOptions.parse(**option) == helios.RenderOptions.parse(**words)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"steps": 2}, "3 stages"),
        ({"steps": [1, 0, 1]}, "--steps"),
        ({"size": (128.5, 64)}, "--size"),
        ({"size": [128, 64, 3]}, "--size"),
        ({"fps": "fast"}, '--fps: must be a number, not "fast"'),
        ({"lanes": 0}, "--lanes 0: must be 1 to 64"),
        ({"gpus_per_film": 0}, "--gpus-per-film 0: must be 1 to 64"),
        ({"shot": 0}, "--shot 0: must be 1 or more"),
        ({"frames": 10.5}, "--frames: must be a whole number, not 10.5"),
        ({"frames": True}, "--frames"),
        ({"seed": 1.5}, "--seed"),
        ({"seed": [1]}, "--seed: must be a whole number, not a list"),
        ({"guidance": math.nan}, "--guidance"),
        ({"workers": 0}, "--workers"),
        ({"worker_timeout": -1}, "--worker-timeout"),
        ({"attention": "foo"}, "--attention: must be one of auto, triton"),
        ({"codec": "vp9"}, "--codec: must be one of h264"),
        ({"vram": 0}, "--vram"),
        ({"export": 5}, "--export"),
        ({"filter": 5}, "--filter: must be text"),
        ({"force": "yes"}, "--force: must be True or False"),
        ({"image": 5}, "--image: must be a path"),
        ({"device": 0}, "--device: must be text"),
        ({"lora": 5}, "--lora"),
        ({"on": 4090}, "--on: must be text"),
        ({"price": "much"}, "--price: must be a number"),
        ({"price": -1}, "--price"),
    ],
    ids=str,
)
def test_values_that_no_flag_takes_are_input_errors(option, says):
    with pytest.raises(helios.errors.InputError, match=re.escape(says)):
        helios.plan("a red ball", **{"model": "tiny", "device": "cpu", **option})


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
