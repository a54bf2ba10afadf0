"""`helios render` with workers: real processes, which are killed, stopped and hung; frames are those of one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helios_cli.cli import main
from support.reruns import decoded
from support.waiting import LONGEST, alive, wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

FILM = """version = 1
[[shot]]
prompt = "a red ball rolls left"
seconds = 1.5
[[shot]]
prompt = "a blue square over hills"
seconds = 8
transition = "cut"
[[shot]]
prompt = "a green star at night"
seconds = 6
[[shot]]
prompt = "a white circle on black"
seconds = 4
transition = "cut"
seed = 7
"""
"""A film of three segments, long enough to be stopped three times."""

SHORT = """version = 1
[[shot]]
prompt = "a red ball rolls left"
seconds = 1
[[shot]]
prompt = "a blue square over hills"
seconds = 3
transition = "cut"
[[shot]]
prompt = "a white circle on black"
seconds = 1
transition = "cut"
"""

WITHOUT_TORCH = """
import sys
from helios_cli.cli import main
sys.exit(main(sys.argv[1:]) or ("torch" in sys.modules) * 9)
"""
"""The command in a process that fails if it has imported torch."""

FLAGS = ["-m", "tiny", "--size", "64x64", "--steps", "1,1,1", "--device", "cpu", "--dtype", "float32", "--no-cache"]


@pytest.fixture(scope="session")
def expected(once, tmp_path_factory) -> np.ndarray:
    """The frames of the film that one process renders."""

    def make() -> str:
        folder = tmp_path_factory.mktemp("one process")
        (folder / "film.toml").write_text(FILM)
        assert main(["render", str(folder / "film.toml"), "-o", str(folder / "film.mkv"), *FLAGS, "-q"]) == 0
        return str(folder / "film.mkv")

    return decoded(Path(once("film of one process for workers", make)))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("film.toml").write_text(FILM)
    return tmp_path


class Command:
    """A running `helios render --json`: its events, and the processes of its workers."""

    def __init__(self, *arguments: str, program: tuple[str, str] = ("-m", "helios_cli")) -> None:
        command = [sys.executable, *program, "render", *arguments, *FLAGS, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events: list[dict] = []
        self.pids: set[int] = set()

    def __iter__(self) -> Iterator[dict]:
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if "pid" in event:
                self.pids.add(event["pid"])
            yield event

    def until(self, name: str, **values: object) -> dict:
        """Read events up to the first of that name and with these values."""
        return next(e for e in self if e["event"] == name and all(e.get(k) == v for k, v in values.items()))

    def end(self) -> tuple[int, str]:
        """Wait for the end; return exit code and standard error. No worker is left then."""
        for _ in self:
            pass
        _, errors = self.process.communicate(timeout=LONGEST)
        wait_until(lambda: not any(map(alive, self.pids)))
        return self.process.returncode, errors

    def of(self, name: str) -> list[dict]:
        return [event for event in self.events if event["event"] == name]


def assert_film(expected, output: str = "film.mkv", *others: str) -> None:
    """The film has the frames of one process, and nothing else is left."""
    assert (decoded(Path(output)) == expected).all()
    names = {"film.toml", *others, output, str(Path(output).with_suffix(".json"))}
    assert set(os.listdir()) == names


def safe_chunks() -> int:
    """Return how many chunks are safe. A chunk is some time after its event, while the next one is rendered."""
    return len(list(Path("film.mkv.parts").glob("chunks/*/*.piece")))


def test_two_workers_make_the_film_of_one_process_without_torch_in_the_driver(expected):
    command = Command("film.toml", "-o", "film.mkv", "--workers", "2", program=("-c", WITHOUT_TORCH))
    assert command.end() == (0, "")
    assert_film(expected)
    assert {event["worker"]["name"] for event in command.of("chunk_done")} == {"cpu0", "cpu1"}
    assert len(command.of("film_started")) == len(command.of("film_done")) == 1
    assert command.of("film_done")[0]["frames"] == len(expected)


def test_segments_of_a_killed_and_of_a_hung_worker_go_on_elsewhere(expected):
    command = Command("film.toml", "-o", "film.mkv", "--workers", "2", "--worker-timeout", "20")
    os.kill(command.until("chunk_done")["pid"], signal.SIGKILL)
    command.until("worker_lost")
    os.kill(command.until("chunk_done")["pid"], signal.SIGSTOP)
    assert command.end()[0] == 0
    killed, hung, *_ = [lost["reason"] for lost in command.of("worker_lost")]
    assert killed == "it was killed (SIGKILL), perhaps because memory ran out"
    assert "--worker-timeout" in hung
    assert_film(expected)


def test_a_command_that_is_stopped_or_killed_leaves_no_worker_and_goes_on(expected, tmp_path, monkeypatch):
    """Each time with what was safe before; and at last by workers or, in a copy of the folder, by one process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = safe_chunks()
        command = Command("film.toml", "-o", "film.mkv", "--workers", "2")
        if before:
            assert command.until("chunks_reused")["count"] > 0
        command.until("chunk_done")
        wait_until(lambda before=before: safe_chunks() > before)
        command.process.send_signal(number)
        code, errors = command.end()
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 130
            assert re.search(r"stopped: \d+ of the 16 chunks of film.mkv are safe", errors)
    copy = tmp_path.with_name(f"{tmp_path.name}-copy")
    shutil.copytree(tmp_path, copy)
    for folder, workers in ((tmp_path, ["--workers", "2"]), (copy, [])):
        monkeypatch.chdir(folder)
        again = Command("film.toml", "-o", "film.mkv", *workers)
        assert again.end()[0] == 0
        assert again.of("film_done")[0]["frames_reused"] > 0
        assert_film(expected)


def test_six_films_are_shared_by_two_commands_of_which_one_is_killed():
    """Each is rendered once, and nothing is left over."""
    names = [f"film{number}" for number in range(6)]
    for name in names:
        Path(f"{name}.toml").write_text(SHORT)
    Path("film.toml").unlink()
    Path("out").mkdir()
    sources = [f"{name}.toml" for name in names]
    commands = [Command(*sources, "-o", "out", "--share") for _ in range(2)]
    commands[0].until("chunk_done")
    commands[1].until("chunk_done")
    commands[0].process.kill()
    assert commands[0].end()[0] == -signal.SIGKILL
    assert commands[1].end()[0] == 0
    assert sorted(event["film"] for event in commands[1].of("film_done")) == names
    assert sorted(os.listdir("out")) == sorted(f"{name}.{kind}" for name in names for kind in ("mp4", "json"))
    films = [decoded(Path("out", f"{name}.mp4")) for name in names]
    assert all(len(film) == 5 * 24 and (film == films[0]).all() for film in films)
    segments = [event for event in commands[1].of("segment_done")]
    assert len(segments) + len(commands[0].of("segment_done")) == 3 * len(names)
