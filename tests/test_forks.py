"""Forks of tests are the processes that Python would have started (support/forks.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from support import forks
from support.waiting import LONGEST

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")]

HELIOS = [sys.executable, "-m", "helios_cli"]


def is_fork(process: subprocess.Popen) -> bool:
    return getattr(process, "_keeper", None) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["render", "a red ball", "--size", "7x7"],
        ["recipe", "-", "-o", "film.toml"],
        ["recipe", "a snowman \N{SNOWMAN}", "-o", "film.toml"],
        [],
    ],
)
def test_a_fork_says_and_does_the_same(arguments, tmp_path):
    made = []
    for kind in (forks.Popen, forks.Popen.__base__):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        environment = {**os.environ, "COLUMNS": "60", "HELIOS_HOME": str(tmp_path / "home")}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with kind([*HELIOS, *arguments], cwd=folder, env=environment, text=True, **pipes) as process:
            assert is_fork(process) == (kind is forks.Popen)
            said = process.communicate("a green ball", timeout=LONGEST)
        made.append((process.returncode, said, {file.name: file.read_bytes() for file in folder.iterdir()}))
    assert made[0] == made[1]


def test_a_fork_leads_its_session_is_seen_and_killed():
    command = [*HELIOS, "plan", "-"]  # reads its standard input
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert forks.children(os.getpid())[process.pid] == command[1:]
    assert os.getsid(process.pid) == process.pid and process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(LONGEST) == -signal.SIGKILL
    assert process.pid not in forks.children(os.getpid())
    process.stdin.close()


@pytest.mark.parametrize("how", [{"env": {**os.environ, "OMP_NUM_THREADS": "3"}}, {"preexec_fn": os.setpgrp}])
def test_what_is_decided_at_the_start_is_not_forked(how):
    with subprocess.Popen([*HELIOS, "--version"], stdout=subprocess.DEVNULL, **how) as process:
        assert not is_fork(process)
    assert process.returncode == 0
