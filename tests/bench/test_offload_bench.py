"""`helios bench offload`, through the real entry point, each mode in its own process."""

from __future__ import annotations

import json

import pytest
import torch

from helios_cli.bench.bandwidth import bandwidths
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cli import main
from helios_cli.cost.speeds import read_bandwidths
from helios_cli.machine import pick_dtype
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.specs import SPECS

SMALL = ["--size", "64x64", "--steps", "1,1,1", "--chunks", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny", SPECS["tiny"])


def test_each_mode_is_measured_against_its_floor(folder, tmp_path, capsys):
    out = tmp_path / "offload.json"
    assert main(["bench", "offload", "-m", str(folder), *SMALL, "--budgets", "1G", "--json", "--out", str(out)]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report == json.loads(out.read_text())
    assert [mode["mode"] for mode in report["modes"]] == ["none", "model", "stream"]
    none, model, stream = report["modes"]
    itemsize = pick_dtype("auto", torch.device("cpu"))[0].itemsize
    assert none["ratio"] == 1 and none["moved_bytes"] == 0 and none["floor_seconds"] == none["seconds"]
    assert stream["budget_bytes"] == 10**9 and stream["planned_host_bytes"] <= 10**9
    for mode in (model, stream):
        reading = mode["moved_bytes"] * 4 / itemsize / report["bandwidths"]["cache"]  # float32 in the file
        assert mode["floor_seconds"] == pytest.approx(max(none["seconds"], reading), rel=0.01)
        assert mode["ratio"] == mode["seconds"] / mode["floor_seconds"]
        assert mode["peak_host_bytes"] > 10**8 and mode["peak_device_bytes"] is None
    assert "too small to tell" in said.err and read_bandwidths() == {}


def test_a_budget_that_cannot_be_read(folder, capsys):
    assert main(["bench", "offload", "-m", str(folder), "--budgets", "lots"]) == 2
    assert "not an amount of memory" in capsys.readouterr().err


def test_what_is_read_is_what_a_second_holds(folder):
    found = bandwidths(Checkpoint.open(folder), torch.device("cpu"), torch.bfloat16)
    assert 1e6 < found["cache"] < 1e12
    assert found.keys() <= {"disk", "cache"}
