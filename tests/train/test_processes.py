"""A run on two real processes, started by torchrun, against the same run on one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import support.toy  # noqa: F401
from helios_cli.cli import main
from helios_cli.errors import InputError
from helios_cli.train import processes as processes_module
from helios_cli.train.processes import Processes, process_group
from helios_cli.train.state import load_state
from support.waiting import LONGEST

CONFIG = """
phase = "toy"
out = "{out}"
steps = 10
batch = 5
dtype = "float32"
[ema]
decay = 0.9
[log]
every = 1
save_every = 5
probe_every = 5
samples_every = 5
[faults]
seconds = {seconds}
"""


def write_config(out: Path, seconds: float = 0.0) -> Path:
    config = out.parent / f"{out.name}.toml"
    config.write_text(CONFIG.format(out=out, seconds=seconds))
    return config


def started(config: Path) -> subprocess.Popen:
    """Start a run on two processes."""
    helios = ["-m", "support.toy", "train", str(config), "--device", "cpu", "--progress", "plain"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.Popen([sys.executable, *torchrun, *helios], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.process
@pytest.mark.train
def test_two_processes_stop_together_and_go_on_and_come_to_what_one_comes_to(tmp_path, capsys):
    """A batch of five: two samples for one process, three for the other. SIGTERM reaches them through torchrun."""
    config = write_config(tmp_path / "two", seconds=0.1)
    run, lines = started(config), []
    for line in run.stderr:
        lines.append(line)
        if line.startswith("step 4"):
            break
    run.send_signal(signal.SIGTERM)
    before = "".join(lines) + run.communicate(timeout=LONGEST)[1]
    assert run.returncode != 0
    stopped = load_state(tmp_path / "two")["step"]
    assert 4 <= stopped < 10, before
    again = started(config)
    said = again.communicate(timeout=LONGEST)[1]
    assert again.returncode == 0 and f"continues after step {stopped}" in said

    assert main(["train", str(write_config(tmp_path / "one")), "--device", "cpu", "--progress", "plain"]) == 0
    # Two sheets and the checkpoint; and one process says it.
    assert (before + said).count("wrote ") == capsys.readouterr().err.count("wrote ") == 3
    one, two = (load_state(tmp_path / name) for name in ("one", "two"))
    assert one["step"] == two["step"] == 10
    for player, values in one["players"].items():
        for name, value in values.items():
            # float32, five gradients added in another order, 15 updates, some by Newton-Schulz.
            torch.testing.assert_close(two["players"][player][name], value, rtol=1e-4, atol=2e-5)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    for first, second in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert first["step"] == second["step"]
        key = "probe" if "probe" in first else "losses"
        assert second[key] == pytest.approx(first[key], rel=1e-4)


@pytest.fixture
def alone(tmp_path):
    """A group of one process, with gloo, as `process_group` makes it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_are_added_up_some_at_a_time(alone, monkeypatch):
    """A buffer is no larger than BUCKET, or than the largest gradient, however many gradients there are."""
    monkeypatch.setattr(processes_module, "BUCKET", 100)
    sizes, reduced = [30, 60, 20, 500, 100, 1, 7], []
    all_reduce = dist.all_reduce

    def noted(values: torch.Tensor) -> None:
        reduced.append(values.numel())
        all_reduce(values)
        values *= 2  # what another process with the same gradients adds

    params = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    for p in params:
        p.grad = torch.randn(p.shape)
    before = [p.grad.clone() for p in params]
    monkeypatch.setattr(dist, "all_reduce", noted)
    Processes(0, 2, torch.device("cpu")).add_gradients([*params, torch.nn.Parameter(torch.zeros(3))])
    assert reduced == [8, 90, 20, 500, 100, 8]  # first, who has any
    assert all(torch.equal(p.grad, 2 * one) for p, one in zip(params, before, strict=True))


def test_the_others_wait_as_long_as_one_may_take(monkeypatch):
    """To sample or measure: longer than the ten or thirty minutes after which PyTorch ends a run by itself."""
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    asked = {}
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: asked.update(how, backend=backend))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with process_group(torch.device("cpu"), 2):
        assert asked["backend"] == "gloo" and asked["timeout"] >= timedelta(hours=3)


@pytest.mark.parametrize(("batch", "count"), [(8, 1), (8, 4), (7, 3), (3, 3)])
def test_shares_are_the_batch_without_overlap(batch, count):
    shares = [Processes(rank, count, torch.device("cpu")).share(3, batch, 9) for rank in range(count)]
    assert [sample for share in shares for sample in share.samples] == list(range(batch))
    assert all(share.samples and (share.step, share.batch, share.seed) == (3, batch, 9) for share in shares)


def test_a_batch_has_a_sample_for_each_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"batch of 3 .* 4 processes"), process_group(torch.device("cpu"), 3):
        pass


def test_draws_depend_on_seed_step_sample_and_turn_alone():
    def drawn(rank, count, **values):
        share = Processes(rank, count, torch.device("cpu")).share(**{"step": 1, "batch": 6, "seed": 2, **values})
        return {sample: torch.randn(3, generator=share.generator(sample)).tolist() for sample in share.samples}

    whole = drawn(0, 1)
    assert {**drawn(0, 2), **drawn(1, 2)} == whole
    others = [drawn(0, 1, step=2), drawn(0, 1, seed=3), drawn(0, 1, turn=1)]
    seen = [tuple(value) for found in (whole, *others) for value in found.values()]
    assert len(set(seen)) == len(seen) == 24
