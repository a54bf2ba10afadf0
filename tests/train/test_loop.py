"""The loop against one written out by hand, and runs that are stopped, killed and spoilt against runs that are not."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helios_cli import machine
from helios_cli.bench.specs import SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.cli import main
from helios_cli.errors import CheckpointError, InputError, Interrupted, OutOfMemory, PictureError
from helios_cli.train.events import Notice, RunDone, RunStarted, Sampled, Saved, Trained
from helios_cli.train.loop import dtype_name, train
from helios_cli.train.phase import Share
from helios_cli.train.settings.run import Ema, Log, Optimizer
from helios_cli.train.state import load_state
from helios_cli.weights.checkpoint import Checkpoint, files_of
from support.reruns import ended_at
from support.tiers import some
from support.toy.phases.toy import Toy
from support.toy.tables import Faults, Memory, ToySettings
from support.waiting import LONGEST

CPU = torch.device("cpu")


def settings(out: Path, **values) -> ToySettings:
    given = {"phase": "toy", "out": str(out), "steps": 12, "batch": 4, "dtype": "float32", "ema": Ema(decay=0.9)}
    return ToySettings(**{**given, "log": Log(every=1, save_every=4), **values})


def finish(config: ToySettings) -> list:
    return list(train(config, CPU))


def flat(state: object, place: str = "") -> dict[str, object]:
    """Leaves of a state, without the seconds and the settings."""
    if isinstance(state, dict):
        items = [(key, value) for key, value in state.items() if key not in ("seconds", "config")]
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {place: state}
    return {name: leaf for key, value in items for name, leaf in flat(value, f"{place}/{key}").items()}


def assert_same_state(one: Path, other: Path) -> None:
    first, second = flat(load_state(one)), flat(load_state(other))
    assert first.keys() == second.keys() and len(first) > 20
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_steps_are_those_of_a_loop_by_hand(tmp_path):
    """PyTorch's AdamW and clipping, the whole batch in one process, no accumulation: nothing of ours but the draws."""
    config = settings(tmp_path / "run", optimizer=Optimizer(lr=0.02, clip=0.5, warmup=3, decay=0.5))
    finish(config)
    toy = Toy(config, None, CPU)
    net = toy.players["net"]
    moves = {name: torch.optim.AdamW(player.parameters(), weight_decay=0) for name, player in toy.players.items()}
    mean = [p.detach().clone() for p in net.parameters()]
    updates = 0
    for step in range(12):
        for turn, name in enumerate(["critic", "critic", "net"] if step % 2 else ["net"]):
            share = Share(step, range(4), 4, 0, turn if name == "critic" else 0)
            loss = sum(toy.loss(name, share, sample) for sample in range(4)) / 4
            moves[name].zero_grad()
            loss.backward()
            rate = 0.005
            if name == "net":
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                rate = 0.02 * min(1, (step + 1) / 3) * min(1, (1 - step / 12) / 0.5)
            moves[name].param_groups[0]["lr"] = rate
            moves[name].step()
            if name == "net":
                decay = min(0.9, (1 + updates) / (10 + updates))
                mean = [decay * m + (1 - decay) * p.detach() for m, p in zip(mean, net.parameters(), strict=True)]
                updates += 1
    state = load_state(tmp_path / "run")
    for name in ("net", "critic"):
        for key, value in toy.players[name].state_dict().items():
            # float32, the gradients of four samples added in another order, 18 updates.
            torch.testing.assert_close(state["players"][name][key], value, rtol=1e-4, atol=1e-5)
    saved = load_file(tmp_path / "run/checkpoint/net.safetensors")
    for (key, p), m in zip(net.named_parameters(), mean, strict=True):
        torch.testing.assert_close(saved[key], m, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(m, p, rtol=1e-3, atol=1e-4)


def test_auto_is_what_the_device_is_fast_in_and_a_run_keeps_to_it(tmp_path, monkeypatch):
    """Where it goes on, too: with other arithmetic it would be another run."""
    asked = iter(range(100))
    fast = machine.Cpu("", 1, 1, ("avx512_bf16",))
    monkeypatch.setattr(machine, "cpu", lambda: fast)
    with pytest.raises(Interrupted):
        for event in train(settings(tmp_path, dtype="auto"), CPU, lambda: next(asked) == 1):
            if isinstance(event, RunStarted):
                assert "on cpu in bfloat16" in event.text
    monkeypatch.setattr(machine, "cpu", lambda: fast._replace(features=()))
    with pytest.raises(InputError, match="dtype was 'bfloat16', is 'float32'"):
        finish(settings(tmp_path, dtype="auto"))
    assert finish(settings(tmp_path, dtype="bfloat16"))[0].dtype == "bfloat16"
    assert finish(settings(tmp_path / "new", dtype="auto"))[0].dtype == "float32"


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "bfloat16"), ((7, 5), "float32")])
def test_no_run_computes_in_float16(monkeypatch, capability, name):
    """Films use float16 on GPUs without bfloat16; training does not."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 2))
    assert dtype_name("auto", torch.device("cuda")) == name
    assert dtype_name("bfloat16", torch.device("cuda")) == "bfloat16"


@pytest.mark.parametrize("stopped_after", some(1, [5, 1, 8, 11]))
def test_a_stopped_run_comes_to_the_same_end(tmp_path, stopped_after):
    config = settings(tmp_path / "stopped")
    asked = iter(range(100))
    with pytest.raises(Interrupted, match=f"after {stopped_after} steps"):
        list(train(config, CPU, lambda: next(asked) == stopped_after - 1))
    started = finish(config)[0]
    assert isinstance(started, RunStarted) and started.step == stopped_after
    finish(settings(tmp_path / "whole"))
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")
    names = [(line.get("player", "probe"), line["step"]) for line in lines(tmp_path / "stopped")]
    assert names == [(line.get("player", "probe"), line["step"]) for line in lines(tmp_path / "whole")]


def write_config(out: Path, seconds: float) -> Path:
    config = out.parent / "toy.toml"
    config.write_text(
        f'phase = "toy"\nout = "{out}"\nsteps = 12\nbatch = 4\ndtype = "float32"\n'
        f"[ema]\ndecay = 0.9\n[log]\nevery = 1\nsave_every = 4\n[faults]\nseconds = {seconds}\n"
    )
    return config


@pytest.mark.train
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_whose_process_is_ended_comes_to_the_same_end(tmp_path, number):
    """Ended after its sixth step: killed it goes on from the fourth, asked to stop from where it was."""
    out = tmp_path / "ended"
    command = ["train", str(write_config(out, seconds=0.1)), "--progress", "plain"]
    code, said = ended_at("step 6", number, lambda: main(command))
    assert code == (130 if number != signal.SIGKILL else -signal.SIGKILL), said
    begun = load_state(out)["step"]
    assert begun == 4 if number == signal.SIGKILL else begun >= 6
    config = settings(out, faults=Faults(seconds=0.1))
    assert finish(config)[0].step == begun
    finish(settings(tmp_path / "whole"))
    assert_same_state(out, tmp_path / "whole")
    assert len(lines(out)) == len(lines(tmp_path / "whole"))


def test_a_state_that_cannot_be_read_gives_way_to_the_one_before(tmp_path):
    config = settings(tmp_path / "run")
    finish(config)
    states = sorted((tmp_path / "run/state").iterdir())
    assert [state.name for state in states] == ["step-00000008.pt", "step-00000012.pt"]
    states[-1].write_bytes(states[-1].read_bytes()[:1000])
    assert finish(config)[0].step == 8
    finish(settings(tmp_path / "whole"))
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    for state in (tmp_path / "run/state").iterdir():
        state.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000012\.pt"):
        finish(config)


def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(tmp_path):
    finish(settings(tmp_path / "run", steps=6))
    held = load_state(tmp_path / "run")
    events = finish(settings(tmp_path / "run", steps=6))
    assert [type(event) for event in events] == [RunStarted, RunDone]
    finish(settings(tmp_path / "run", steps=9, log=Log(every=2, save_every=100)))
    assert (held["step"], load_state(tmp_path / "run")["step"]) == (6, 9)


OTHER_SETTINGS = {
    "batch was 4, is 5": {"batch": 5},
    "ema.decay was 0.9, is 0.8": {"ema": Ema(decay=0.8)},
    "seed was 0, is 1": {"seed": 1},
    "critic.lr was 0.005, is 1.0": {"critic": Optimizer(lr=1.0)},
    "memory.adapters was 0, is 4": {"memory": Memory(adapters=4)},
}


def test_a_run_does_not_go_on_with_other_settings(tmp_path):
    finish(settings(tmp_path / "run", steps=4))
    for named, changed in OTHER_SETTINGS.items():
        with pytest.raises(InputError, match=named):
            finish(settings(tmp_path / "run", **changed))


def test_a_run_that_ran_out_of_memory_goes_on_with_less(tmp_path):
    finish(settings(tmp_path / "run", steps=4))
    with pytest.raises(OutOfMemory, match="ran out of memory") as error:
        finish(settings(tmp_path / "run", memory=Memory(held=2**60)))
    assert "[memory]" in error.value.hint
    assert finish(settings(tmp_path / "run"))[-1].step == 12


def test_a_run_goes_on_under_a_version_with_another_setting(tmp_path):
    finish(settings(tmp_path / "run", steps=4))
    (file,) = (tmp_path / "run/state").iterdir()
    state = torch.load(file)
    del state["config"]["loss"]
    state["config"]["gone"] = 3
    torch.save(state, file)
    assert finish(settings(tmp_path / "run"))[-1].step == 12


def test_an_update_that_is_not_finite_is_left_out(tmp_path):
    config = settings(tmp_path / "run", faults=Faults(first=5, last=6))
    events = finish(config)
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert len(notices) == 4 and "step 5: the update of critic is not finite" in notices[0]
    assert events[-1].skipped == load_state(tmp_path / "run")["skipped"] == 4
    assert all(p.isfinite().all() for p in load_state(tmp_path / "run")["players"]["net"].values())
    assert all(line["step"] not in (6, 7) for line in lines(tmp_path / "run") if "player" in line)


@pytest.mark.parametrize("player", ["", "net", "critic"])
def test_a_run_that_does_not_recover_fails_and_keeps_its_last_sound_state(tmp_path, player):
    """It fails even if all other players do well."""
    config = settings(tmp_path / "run", steps=50, faults=Faults(first=9, last=50, player=player))
    with pytest.raises(PictureError, match="not finite"):
        finish(config)
    state = load_state(tmp_path / "run")
    assert state["step"] >= 8
    assert all(p.isfinite().all() for p in state["players"]["net"].values())


@pytest.mark.train
def test_time_ends_a_run_and_brings_its_rates_down(tmp_path):
    config = settings(
        tmp_path / "run", steps=None, max_minutes=0.02, optimizer=Optimizer(decay=1.0), faults=Faults(seconds=0.02)
    )
    began = time.monotonic()
    events = finish(config)
    assert time.monotonic() - began < LONGEST
    trained = [event for event in events if isinstance(event, Trained) and event.player == "net"]
    assert trained[-1].fraction == 1 and trained[-1].seconds >= 1.2
    rates = [event.lr for event in trained]
    assert rates == sorted(rates, reverse=True) and rates[0] == 1e-3 and rates[-1] < rates[0]
    assert load_state(tmp_path / "run")["step"] == trained[-1].step


@pytest.mark.train
def test_a_slow_run_is_saved_by_the_clock(tmp_path):
    """Every 0.1 s, with steps of 0.05 s: after two or, as a step also takes time itself, one."""
    log = Log(save_every=1000, save_minutes=0.1 / 60)
    events = finish(settings(tmp_path / "run", log=log, faults=Faults(seconds=0.05)))
    saved = [event.step for event in events if isinstance(event, Saved)]
    assert len(saved) >= 4 and saved[-1] == 12


def test_the_checkpoint_is_the_start_with_what_the_phase_saves(tmp_path):
    start = write_checkpoint(tmp_path / "start", SPECS["tiny"], seed=3, kind="mid")
    finish(settings(tmp_path / "first", start=str(start), steps=2))
    finish(settings(tmp_path / "second", start=str(tmp_path / "first"), steps=2))  # a run is a start, too
    made = tmp_path / "second/checkpoint"
    assert Checkpoint.open(made).kind == "mid"
    assert files_of(made) == files_of(start)
    assert [name for name in files_of(start) if (made / name).read_bytes() != (start / name).read_bytes()] == []
    assert (made / "net.safetensors").exists()


def test_a_fresh_run_leaves_a_whole_checkpoint(tmp_path):
    finish(settings(tmp_path / "run", steps=2))
    assert Checkpoint.open(tmp_path / "run/checkpoint").kind == "base"


def test_what_is_written_down(tmp_path):
    log = Log(every=3, save_every=6, samples_every=6, probe_every=4)
    events = finish(settings(tmp_path / "run", log=log))
    found = lines(tmp_path / "run")
    nets = [line for line in found if line.get("player") == "net"]
    assert [line["step"] for line in nets] == [3, 6, 9, 12]
    assert set(nets[0]) == {"step", "player", "losses", "lr", "grad_norm", "samples_per_second", "seconds"}
    every = finish(settings(tmp_path / "every"))
    first = [event.losses["error"] for event in every if isinstance(event, Trained) and event.player == "net"][:3]
    assert nets[0]["losses"]["error"] == pytest.approx(sum(first) / 3)
    assert [line["step"] for line in found if "probe" in line] == [4, 8, 12]
    assert [Path(event.path).name for event in events if isinstance(event, Sampled)] == [
        "step-00000006.png",
        "step-00000012.png",
    ]
    assert ElementTree.parse(tmp_path / "run/losses.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("place", ["other", "file", "start"])
def test_a_folder_that_is_no_run_is_not_written_to(tmp_path, place):
    out = tmp_path / "run"
    if place == "other":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
        config = settings(out)
    elif place == "file":
        out.write_text("mine")
        config = settings(out)
    else:
        finish(settings(out, steps=1))
        config = settings(out, start=str(out / "checkpoint"))
    with pytest.raises(InputError):
        finish(config)
