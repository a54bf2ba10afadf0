"""The way of the README from `ray start` to a film, with a token, a driver in the cluster and one outside of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import helios_cli as helios
from support.ray_nodes import descendants
from support.reruns import decoded
from support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

README = Path(__file__).resolve().parents[2] / "README.md"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
HOW = {"model": "tiny", "size": (64, 64), "steps": (1, 1, 1), "seconds": 2, "cache": False}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def commands() -> list[list[str]]:
    """The commands of the README's section on Ray."""
    section = README.read_text().partition("## A Ray cluster")[2].partition("\n## ")[0]
    lines = [
        line.partition("#")[0]
        for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        for line in block.splitlines()
    ]
    return [line.split() for line in lines]


def one_of(*beginning: str) -> list[str]:
    return next(words for words in commands() if words[: len(beginning)] == list(beginning))


@contextlib.contextmanager
def first_client_dies(head: int) -> Iterator[None]:
    """Kill the first process that the head starts for a client, as ray-project/ray#63202 does now and then."""
    killed = []

    def kill() -> None:
        while not killed:
            for pid in descendants(head):
                with contextlib.suppress(OSError):
                    if b"--mode=specific-server" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.1)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield
    thread.join(10)
    assert killed


def test_from_ray_start_to_a_film(with_ray, tmp_path, monkeypatch):
    """Ports differ from those of the README, since others may use them, and nothing listens beyond loopback.

    The driver outside of the cluster renders while the others do: the head waits 30 s for the process that was killed.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")))
        head, client = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        for name, value in {
            "HOME": str(home),
            "RAY_TMPDIR": str(home),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "1",  # the head waits so long for the client whose process died
            one_of("export")[1].partition("=")[0]: one_of("export")[1].partition("=")[2],
        }.items():
            monkeypatch.setenv(name, value)
        subprocess.run([*RAY, *one_of("ray", "get-auth-token")[1:]], check=True, capture_output=True)
        assert (home / ".ray" / "auth_token").exists()
        start = " ".join(one_of("ray", "start", "--head")[1:])
        start = start.replace("6379", head.rpartition(":")[2]).replace("10001", client.rpartition(":")[2])
        log = stack.enter_context((home / "log").open("w"))
        process = subprocess.Popen(
            [*RAY, *start.split(), "--block", "--num-cpus", "1", "--include-dashboard", "false"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(end, process)
        wait_until(lambda: "Ray runtime started" in (home / "log").read_text() or process.poll() is not None)
        assert process.poll() is None, (home / "log").read_text()
        stack.enter_context(first_client_dies(process.pid))
        monkeypatch.setenv("RAY_ADDRESS", head)  # what `auto` takes first
        outside = stack.enter_context(ThreadPoolExecutor())
        client_film = outside.submit(film_of, tmp_path / "client.mp4", cluster=f"ray://{client}")
        whole = film_of(tmp_path / "whole.mp4")
        for flag in (head, "auto"):
            assert np.array_equal(film_of(tmp_path / f"{flag}.mp4", cluster=flag), whole)
        assert np.array_equal(client_film.result(), whole)


def film_of(output: Path, **how: str) -> np.ndarray:
    for _ in helios.render("a red ball rolls to the left", output=output, **how, **HOW):
        pass
    return decoded(output)


def end(process: subprocess.Popen) -> None:
    family = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait()
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
