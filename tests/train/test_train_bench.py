"""The gauge of the memory table against tensors of known size, and the ways against what they are for."""

from __future__ import annotations

import json

import torch

from helios_cli import machine
from helios_cli.cli import main
from helios_cli.train import bench
from helios_cli.train.bench import Held, Job, measure_apart, peak_of

MEGA = 10**6


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


def test_checkpointing_and_adapters_hold_less():
    """Without activations of blocks a step holds less; with one backbone for three, less stays between steps. Each way
    in a process of its own, where no other test's tensors are."""
    plain, checkpointed, shared = (
        measure_apart(Job(way, "tiny", 1, "cpu", "float32"))
        for way in ("nothing", "block checkpointing", "one backbone, adapters")
    )
    assert checkpointed.peak_bytes < 0.8 * plain.peak_bytes
    assert checkpointed.between_bytes == plain.between_bytes
    assert shared.between_bytes < 0.7 * plain.between_bytes


def test_the_command_says_what_auto_came_to(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu("", 1, 1, ()))
    monkeypatch.setattr(bench, "compare", lambda *job: asked.append(job) or [Held("nothing", 2, 1, 1, 0.5)])
    assert main(["bench", "train", "--device", "cpu", "--json"]) == 0
    assert asked == [("tiny", 4, torch.device("cpu"), "float32")]
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == "float32" and report["ways"][0]["peak_bytes"] == 2
