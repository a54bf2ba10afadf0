"""`helios bench offload`, through the real entry point, each mode in its own process."""

from __future__ import annotations

import json
import os
import tempfile
from types import SimpleNamespace

import pytest
import torch

from helios_cli.bench.offload import DriverWatch, bandwidths, measure_modes, row_of
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cli import main
from helios_cli.commands import bench_offload
from helios_cli.cost.speeds import read_bandwidths
from helios_cli.device import torch_dtype
from helios_cli.weights.checkpoint import Checkpoint
from support.programs import program
from support.waiting import wait_until

SMALL = ["--size", "64x64", "--steps", "1,1,1", "--chunks", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny", SPECS["tiny"])


@pytest.mark.process
@pytest.mark.slow
def test_each_mode_is_measured_against_its_floor(folder, tmp_path, capsys):
    out = tmp_path / "offload.json"
    assert main(["bench", "offload", "-m", str(folder), *SMALL, "--budgets", "1G", "--json", "--out", str(out)]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report == json.loads(out.read_text())
    assert [mode["mode"] for mode in report["modes"]] == ["none", "model", "stream"]
    none, model, stream = report["modes"]
    itemsize = torch_dtype("auto", torch.device("cpu")).itemsize
    assert none["ratio"] == 1 and none["moved_bytes"] == 0 and none["floor_seconds"] == none["seconds"]
    assert stream["budget_bytes"] == 10**9 and stream["planned_host_bytes"] <= 10**9
    for mode in (model, stream):
        reading = mode["moved_bytes"] * 4 / itemsize / report["bandwidths"]["cache"]  # float32 in the file
        assert mode["floor_seconds"] == pytest.approx(max(none["seconds"], reading), rel=0.01)
        assert mode["ratio"] == mode["seconds"] / mode["floor_seconds"]
        assert mode["peak_host_bytes"] > 10**8 and mode["peak_device_bytes"] is None
    assert not stream["over_budget"] and stream["peak_driver_bytes"] is None and stream["peak_reserved_bytes"] is None
    assert "too small to say" in said.err and read_bandwidths() == {}


def test_nothing_measured_is_a_failure(folder, tmp_path, monkeypatch, capsys):
    """Here for want of a place that can be written: no process can be asked."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    out = tmp_path / "offload.json"
    assert main(["bench", "offload", "-m", str(folder), *SMALL, "--out", str(out)]) == 3
    assert "could be measured" in capsys.readouterr().err and not out.exists()


def test_what_the_driver_says_is_watched(tmp_path, monkeypatch):
    """The most that is used over what was before, by a program that answers as nvidia-smi does."""
    free = tmp_path / "free"
    program(tmp_path / "nvidia-smi", f'echo "NVIDIA H200, 9.0, 1000, $(cat {free})"')
    free.write_text("900")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with DriverWatch("cuda:1") as watch:
        for left, most in (("400", 500), ("700", 500), ("300", 600)):
            free.write_text(left)
            wait_until(lambda: watch.peak_bytes == most * 2**20)  # noqa: B023
    free.write_text("0")
    assert watch.peak_bytes == 600 * 2**20 and not watch._thread.is_alive()


def test_without_a_driver_nothing_is_watched(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for device in ("cuda", "cpu"):
        with DriverWatch(device) as watch:
            pass
        assert watch.peak_bytes is None


@pytest.mark.parametrize(
    ("device", "reserved", "driver", "host", "over"),
    [
        (5, 7, 9, 99, False),
        (5, 7, 11, 99, True),
        (5, 11, None, 99, True),
        (None, None, None, 9, False),
        (None, None, None, 11, True),
    ],
)
def test_a_peak_over_its_budget_is_marked(device, reserved, driver, host, over):
    placement = SimpleNamespace(mode="stream", resident=3, takes_turns=False)
    mode = SimpleNamespace(
        name="stream", placement=placement, device_bytes=1, host_bytes=1, read_bytes=8, moved_bytes=8
    )
    result = SimpleNamespace(peak_device_bytes=device, peak_reserved_bytes=reserved, peak_host_bytes=host)
    for budget, marked in ((10, over), (None, False)):
        row = row_of(mode, budget, result, driver, 2.0, 1.0, {"cache": 4.0})
        assert row["over_budget"] == marked
        assert bench_offload._cells(row)[-1] == ("over its budget" if marked else "")


def test_synthetic_weights_are_written_once(tmp_path, monkeypatch):
    made = bench_offload._synthetic(None, "tiny", tmp_path / "made")
    stored = made.component("transformer").tensors.values()
    assert {tensor.dtype for tensor in stored} == {"BF16"}
    monkeypatch.delattr("helios_cli.bench.synthetic.write_checkpoint")
    assert bench_offload._synthetic(None, "tiny", made.path).path == made.path


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--synthetic", "tiny"], "go together"),
        (["--folder", "x"], "go together"),
        (["--synthetic", "tiny", "--folder", "x", "-m", "tiny"], "go together"),
        (["--synthetic", "huge", "--folder", "x"], "'huge' is not a size"),
    ],
    ids=str,
)
def test_a_size_and_a_folder_go_together(flags, said, capsys):
    assert main(["bench", "offload", *flags]) == 2
    assert said in capsys.readouterr().err


def test_without_time_no_film_begins():
    mode = SimpleNamespace(name="none")
    subject = SimpleNamespace(plan=SimpleNamespace(chunks=[1]))
    ((_, said),) = measure_modes(None, subject, [(mode, None)], {}, torch.device("cpu"), seconds=1.0)
    assert said.message == "no time was left for it"


def test_a_budget_that_cannot_be_read(folder, capsys):
    assert main(["bench", "offload", "-m", str(folder), "--budgets", "lots"]) == 2
    assert "not an amount of memory" in capsys.readouterr().err


def test_what_is_read_is_what_a_second_holds(folder):
    found = bandwidths(Checkpoint.open(folder), torch.device("cpu"), torch.bfloat16)
    assert 1e6 < found["cache"] < 1e12
    assert found.keys() <= {"disk", "cache"}
