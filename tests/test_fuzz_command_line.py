"""No command line ends as a bug or sends what it holds to the terminal: flags with values that belong to others."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from helios_cli.cli import app, main

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "plan": [],
    "render": ["--dry-run"],
    "recipe check": [],
    "recipe convert": [],
    "models info": [],
    "check": [],
    "train": ["--check"],
    "cache list": [],
}
NUMBERS = [
    "0",
    "1",
    "-1",
    "1e308",
    "nan",
    "inf",
    "9" * 21,
    "0.5",
    "12s",
    "0:05",
    "25h",
    "2,2,2",
    "1," * 50,
    "9e9G",
    "6G",
]
NAMES = ["prompts.txt", "film.toml", "list.csv", "x.yaml", "sea.png", "dir", "dir/", "fifo", "fifo.txt", "loop.txt"]
MORE_NAMES = ["dangling.toml", "empty.mp4", "junk.mp4", "t.toml", "model", "/dev/zero", "/dev/null", "/", "..", "out/"]
ODD_NAMES = [
    "",
    "x" * 300,
    "x" * 300 + ".mp4",
    "y/" * 2500,
    "\x1b[31m",
    "\u202e",
    "a\rb",
    "\udce9",
    "https://a/b",
    "film.mp4",
]
WORDS = [
    "640x384",
    "9999999x1",
    "a boat",
    "tiny",
    "base",
    "stranger/weights",
    "cuda:99999999999",
    "cpu",
    "float32",
    "fp8",
]
MORE_WORDS = ["stream", "av1", "otio,edl", "--", "-", "-o", "--json", "lr=1", "optimizer.lr=nan", "a.b.c=1", "H100"]
VALUES = [*NUMBERS, *NAMES, *MORE_NAMES, *ODD_NAMES, *WORDS, *MORE_WORDS]
TREE = get_command(app)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """One with a file of each kind, and its own home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a red ball\n")))
    Path("prompts.txt").write_text("a red ball\n\n[2s] b\n")
    Path("film.toml").write_text('[[shot]]\nprompt = "x"\n')
    Path("list.csv").write_text("id,prompt_index,prompt\n1,0,a\n2,0,b\n")
    Path("x.yaml").write_text("shot:\n- prompt: a\n")
    Path("junk.mp4").write_bytes(random.Random(0).randbytes(3000))
    Path("empty.mp4").touch()
    shutil.copy(ROOT / "recipes" / "first_frame.png", "sea.png")
    shutil.copy(ROOT / "recipes" / "train" / "tiny-mid.toml", "t.toml")
    for name in ("dir", "model"):
        os.mkdir(name)
    Path("model/model_index.json").write_text('{"_class_name": "HeliosPyramidPipeline"}')
    for name in ("fifo", "fifo.txt"):
        os.mkfifo(name)
    os.symlink("loop.txt", "loop.txt")
    os.symlink("nowhere", "dangling.toml")


def some_line(command: str, chance: random.Random) -> list[str]:
    node = TREE
    for name in command.split():
        node = node.commands[name]
    words = [*command.split(), *COMMANDS[command]]
    for parameter in node.params:
        if parameter.param_type_name == "argument":
            words += [chance.choice(VALUES) if chance.random() < 0.7 else "film.toml"]
        elif parameter.name != "help" and chance.random() < 0.08:
            words += [chance.choice(parameter.opts), *([] if parameter.is_flag else [chance.choice(VALUES)])]
    return words


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_line_is_a_bug(folder, capsys, command):
    chance = random.Random(command)
    for _ in range(20):
        words = some_line(command, chance)
        code = main(words)
        out, err = capsys.readouterr()
        assert code in (0, 2, 3, 4), (words, err)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out + err), words
