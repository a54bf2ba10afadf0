"""The gauge of the memory table against tensors of known size, and the ways against what they are for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time

import pytest
import torch

from helios_cli import child, machine
from helios_cli.cli import main
from helios_cli.errors import Interrupted, MachineError
from helios_cli.train import bench
from helios_cli.train.bench import Measurement, MemoryUse, measure_apart, peak_of
from support.programs import program

MEGA = 10**6


@pytest.mark.slow
def test_the_gauge_counts_what_is_alive_at_once():
    kept = torch.zeros(MEGA)  # 4 MB

    def work() -> None:
        first = torch.zeros(2 * MEGA)
        del first
        second, third = torch.zeros(MEGA), torch.zeros(MEGA)
        del second, third

    idle = peak_of(lambda: None, torch.device("cpu"))
    assert idle >= kept.nbytes
    assert 8 * MEGA <= peak_of(work, torch.device("cpu")) - idle < 8.1 * MEGA


@pytest.mark.process
@pytest.mark.train
def test_checkpointing_and_adapters_hold_less():
    """Without activations of blocks a step holds less; with one backbone for three, less stays between steps. Each way
    in a process of its own, where no other test's tensors are."""
    plain, checkpointed, shared = (
        measure_apart(Measurement(way, "tiny", 1, "cpu", "float32"))
        for way in ("nothing", "block checkpointing", "one backbone, adapters")
    )
    assert checkpointed.peak_bytes < 0.8 * plain.peak_bytes
    assert checkpointed.between_bytes == plain.between_bytes
    assert shared.between_bytes < 0.7 * plain.between_bytes


def test_the_command_says_what_auto_came_to(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu("", 1, 1, ()))
    monkeypatch.setattr(bench, "compare", lambda *job: asked.append(job) or [MemoryUse("nothing", 2, 1, 1, 0.5)])
    assert main(["bench", "train", "--device", "cpu", "--json"]) == 0
    assert asked == [("tiny", 4, torch.device("cpu"), "float32")]
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "float32" and report["ways"][0]["peak_bytes"] == 2


@pytest.mark.process
def test_a_measurement_ends_with_the_command(tmp_path, monkeypatch):
    """A machine that is taken away sends SIGTERM to the command alone."""
    began = tmp_path / "pid"
    python = program(tmp_path / "python", f"echo $$ > {began}.new; mv {began}.new {began}; exec sleep 60")
    monkeypatch.setattr(child.sys, "executable", str(python))

    def take_away() -> None:
        while not began.exists():
            time.sleep(0.01)
        time.sleep(0.5)  # the process is there a moment before the call that made it is back
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=take_away, daemon=True).start()
    assert main(["bench", "train", "--device", "cpu"]) == Interrupted.exit_code
    with contextlib.suppress(ChildProcessError):  # that has been waited for
        assert os.WTERMSIG(os.waitpid(int(began.read_text()), 0)[1]) == signal.SIGKILL


@pytest.mark.process
def test_a_measurement_that_is_killed_has_run_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(child.sys, "executable", str(program(tmp_path / "python", "kill -9 $$")))
    with pytest.raises(MachineError, match="memory ran out with nothing"):
        measure_apart(Measurement("nothing", "tiny", 1, "cpu", "float32"))
