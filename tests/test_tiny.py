"""The checkpoint in the package: what it is, what its films show, that it ships, and that others read it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

from golden.make import golden_film
from helios_cli.bench.screening import Showing, films
from helios_cli.bench.selftest import CHUNKS, PICTURES, PROVENANCE, chosen, read_golden
from helios_cli.cli import app
from helios_cli.engine.models import Models
from helios_cli.train.config import load
from helios_cli.train.world.captions import NOUNS
from helios_cli.train.world.judge import adherence, score
from helios_cli.train.world.prompts import prompts
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint, files_of
from helios_cli.weights.names import EMBEDDED_FOLDER
from helios_cli.weights.vocabulary import introduction
from support.renders import Case, rendered
from support.waiting import LONGEST

ROOT = Path(__file__).resolve().parent.parent
CARD = EMBEDDED_FOLDER / "README.md"
MOST_BYTES = 10_000_000


def test_it_says_what_it_is():
    checkpoint = Checkpoint.open(EMBEDDED_FOLDER)
    assert (checkpoint.kind, checkpoint.native_size, checkpoint.trained) == ("distilled", (128, 64), True)
    assert checkpoint.preset.steps == (1, 1, 1)
    assert checkpoint.knows in CARD.read_text()
    assert {dtype for part in checkpoint.components.values() for dtype in part.dtypes} == {"BF16"}


def test_it_is_small_and_nothing_else():
    files = {file.relative_to(EMBEDDED_FOLDER).as_posix() for file in EMBEDDED_FOLDER.rglob("*") if file.is_file()}
    assert files == {"README.md", *files_of(EMBEDDED_FOLDER)}
    assert sum((EMBEDDED_FOLDER / name).stat().st_size for name in files) <= MOST_BYTES


def test_the_commands_of_its_card_can_be_run():
    """Configs that are there and sound, each of which starts from what an earlier one made."""
    lines = re.findall(r"^helios train (\S+\.toml)(.*)$", CARD.read_text(), re.MULTILINE)
    jobs = [(name, load(ROOT / name, re.findall(r"--set (\S+)", flags))) for name, flags in lines]
    shipping = [job for name, job in jobs if "ablation" not in name]
    assert len(shipping) >= 6
    made = set()
    for job in shipping:
        assert job.start in made | {None}, job
        made.add(job.out)
    ablated = [job for name, job in jobs if "ablation" in name]
    assert ablated and all(job.start in made for job in ablated)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"helios (bench [^`\n]*|train .*)", CARD.read_text()))))
def test_the_flags_of_its_card_exist(line):
    command, words = get_command(app), line.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_prompts_beyond_its_world_get_a_line_and_no_others():
    """These prompts name things outside its training, in words that its tokenizer has; README and the model card
    use the others."""
    checkpoint = Checkpoint.open(EMBEDDED_FOLDER)
    beyond = {
        "a red ball, the camera pans right": "not: camera, pans.",
        "a red ball and a blue square move left": "not: move, ball and square together.",
        "a red ball with a green ball": "not: ball and ball together.",
        "day becomes night": "not: day, becomes.",
        "the camera zooms in": "not: camera, zooms.",
    }
    for prompt, said in beyond.items():
        assert said in introduction(checkpoint, "tiny", [prompt])
    known = ["a red ball rolls left over green hills", "a red ball rolls left", ""]
    known += [prompt.caption for prompt in prompts(64)]
    assert introduction(checkpoint, "tiny", known) is None


def test_its_things_are_the_worlds():
    things = {noun for names in NOUNS.values() for noun in names}
    assert set(Checkpoint.open(EMBEDDED_FOLDER).things) == things
    assert set(load(ROOT / "recipes/train/tiny-package.toml").things) == things


@pytest.mark.slow
def test_its_films_show_what_the_prompts_say():
    """Held-out prompts, read from pixels; the least that its card claims, less what eight films may miss by chance."""
    models = Models(Checkpoint.open(EMBEDDED_FOLDER), torch.device("cpu"), torch.float32, name="tiny")
    asked = prompts(8, seed=1)
    shown = films(models, [prompt.caption for prompt in asked], FRAMES_PER_CHUNK, Showing())
    rates = adherence([score(frames, prompt.expected) for frames, prompt in zip(shown, asked, strict=True)])
    assert rates["background"] >= 7 / 8
    assert rates["colour"] >= 7 / 8
    assert rates["shape"] >= 5 / 8
    assert rates["motion"] >= 5 / 8


@pytest.mark.oracle
def test_diffusers_renders_the_same_frames(tmp_path):
    """The check of test_parity for `tiny`, whose frames `helios doctor --test` relies on."""
    expected, golden = golden_film(CHUNKS)[1], read_golden()
    case = Case("distilled", (128, 64), (1, 1, 1), chunks=CHUNKS, prompt=golden.prompt, seed=golden.seed)
    frames = rendered(case, EMBEDDED_FOLDER, tmp_path / "f")[: len(expected)]
    assert expected.std() > 20
    assert (np.abs(frames.astype(int) - expected) > 1).mean() <= 1e-3
    assert (np.abs(golden.frames.astype(int) - chosen(expected)) > 1).mean() <= 1e-3


@pytest.mark.process
@pytest.mark.slow
def test_it_is_in_the_wheel(tmp_path):
    """Built by the backend itself, from a copy: a build leaves files behind in its source."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    (source / "README.md").touch()
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=LONGEST)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"helios_cli/tiny/{name}" for name in ("README.md", *files_of(EMBEDDED_FOLDER))} <= held
    assert {file.relative_to(ROOT).as_posix() for file in (PICTURES, PROVENANCE)} <= held
