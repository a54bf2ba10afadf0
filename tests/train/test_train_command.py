"""`helios train` as its users meet it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len
from rich.console import Console as RichConsole

import support.toy  # noqa: F401
from helios_cli.check.plot import WIDTH
from helios_cli.cli import main
from helios_cli.train.data.toy import ShardWritten
from helios_cli.train.events import FillDone, FillStarted, RunStarted, Trained
from helios_cli.train.log import plot_log, read_log
from helios_cli.train_view import Pace, RichView
from support.waiting import LONGEST

GOOD = 'phase = "toy"\nout = "{out}"\nsteps = 4\nbatch = 2\n[log]\nevery = 2\nsave_every = 2\n'


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(GOOD.format(out=tmp_path / "run"))
    return path


def test_events_are_lines_of_json(config, capfd):
    assert main(["train", str(config), "--json", "--device", "cpu"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    names = [event["event"] for event in events]
    assert names == ["run_started", "trained", "trained", "saved", "trained", "trained", "saved", "run_done"]
    assert events[0]["parameters"] == {"net": 158, "critic": 26}
    assert {event["player"] for event in events if event["event"] == "trained"} == {"net", "critic"}


def test_plain_progress_goes_to_stderr(config, capfd):
    assert main(["train", str(config), "--progress", "plain", "--device", "cpu", "--threads", "1"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    for part in ("toy: net with 158 parameters, critic with 26", "step 2, 50.0%: ", "step 4: saved", "wrote "):
        assert part in err
    assert main(["train", str(config), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_flags_take_the_place_of_settings(config, tmp_path, capfd):
    out = tmp_path / 'the "other", one'
    flags = ["--steps", "1", "-o", str(out), "--set", "loss.weight=0.5", "--set", "ema.decay=0.5", "-q"]
    assert main(["train", str(config), *flags]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint", "log.jsonl", "losses.svg", "state"]
    assert main(["train", str(config), "-o", str(out), "-q"]) == 2
    assert "loss.weight was 0.5, is 1.0" in capfd.readouterr().err


def test_several_configs_are_trained_one_after_another(config, tmp_path):
    second = tmp_path / "second.toml"
    second.write_text(GOOD.format(out=tmp_path / "after") + "[loss]\nweight = 2\n")
    second.write_text(f'start = "{tmp_path / "run"}"\n' + second.read_text())
    assert main(["train", str(config), str(second), "-q"]) == 0
    assert (tmp_path / "after/checkpoint/model_index.json").exists()


def test_all_files_are_read_before_any_is_trained(config, tmp_path, capfd):
    bad = tmp_path / "bad.toml"
    bad.write_text('phase = "toy"\n')
    assert main(["train", str(config), str(bad)]) == 2
    assert "bad.toml" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_folder_is_for_one_config(config, capfd):
    assert main(["train", str(config), str(config), "-o", "runs"]) == 2
    assert "--output" in capfd.readouterr().err


def test_check_only_reads(config, tmp_path, capfd):
    assert main(["train", "--check", str(config)]) == 0
    assert capfd.readouterr().out == f"{config}: ok\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        (("steps = 4", "stepps = 4"), 2, "write `steps`"),
        (("steps = 4", 'steps = 4\nstart = "nowhere"'), 4, "nowhere does not exist"),
        (("steps = 4\n", "steps = 25\nfaults = { last = 99 }\n"), 5, "not finite"),
    ],
    ids=["input", "checkpoint", "picture"],
)
def test_exit_codes(config, capfd, change, code, part):
    config.write_text(config.read_text().replace(*change))
    assert main(["train", str(config), "-q"]) == code
    assert part in capfd.readouterr().err


def test_a_missing_file_and_a_wrong_device(config, capfd):
    assert main(["train", "nowhere.toml"]) == 2
    assert main(["train", str(config), "--device", "abacus"]) == 2
    assert "write auto, cuda" in capfd.readouterr().err


REPORT_MODULES = """
import json, sys
from helios_cli.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "diffusers"} & set(sys.modules)
sys.stderr.write("\\n" + json.dumps([code, sorted(heavy)]))
"""


@pytest.mark.process
@pytest.mark.parametrize("text", ['phase = "vea"\n', 'phase = "vae"\nstepps = 3\n'], ids=["phase", "key"])
def test_what_is_wrong_is_said_without_torch(tmp_path, text):
    (tmp_path / "bad.toml").write_text(text)
    command = [sys.executable, "-c", REPORT_MODULES, "train", str(tmp_path / "bad.toml")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    assert json.loads(run.stderr.splitlines()[-1]) == [2, []], run.stderr


@pytest.mark.parametrize("width", [46, 80, 200])
def test_the_bar_is_never_wider_than_its_terminal(width):
    terminal = RichConsole(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    view = RichView(terminal)
    view.show(RunStarted("toy", "runs/toy", 0, 100, None, 4, 1, "cpu", "float32", {"net": 5, "critic": 3}))
    for step in (10, 20):
        for player in ("net", "critic"):
            losses = {f"a long name of a loss {number}": 0.1 for number in range(9)}
            view.show(Trained(step, player, losses, 1e-3, 1.0, 30.0, 6.0, step / 100))
    with terminal.capture() as captured:
        terminal.print(view.draw())
    lines = captured.get().rstrip("\n").split("\n")
    assert len(lines) == 3 and "20.0%" in lines[0] and "left" in lines[0]
    assert lines[1].startswith("step 20, 20.0%: net a long name") and lines[2].startswith("step 20, 20.0%: critic")
    assert max(map(cell_len, lines)) <= width


def test_a_folder_that_is_filled_has_a_bar():
    terminal = RichConsole(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    view = RichView(terminal)
    view.show(FillStarted("latents", "runs/latents", 1, "cpu", "float32"))
    for done in (64, 1280):
        view.show(ShardWritten(done, 12032, 110, 22.0))
    with terminal.capture() as captured:
        terminal.print(view.draw())
    bar, line = captured.get().rstrip("\n").split("\n")
    assert "10.6%" in bar and "left" in bar and line.strip() == "1,280 of 12,032 clips, 0.200 s a chunk"
    view.show(FillDone("runs/latents"))
    with terminal.capture() as captured:
        terminal.print(view.draw())
    assert not captured.get().strip()


def test_what_is_left_goes_by_the_pace_of_this_process():
    """A resumed run begins somewhere in between."""
    now = iter([100.0, 130.0])
    pace = Pace(lambda: next(now))
    assert pace.left_text == "-:-- left"
    pace.follow(0.4)
    assert pace.left_text == "-:-- left"
    pace.follow(0.5)
    assert pace.left_text == "2:30 left"


def test_a_plot_shows_every_series(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [{"step": step, "player": "net", "losses": {"a": 1 / step, "b": float("nan")}} for step in range(1, 500)]
    lines += [{"step": 9, "probe": {"c": 2.0}}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {name: len(points) for name, points in read_log(log).items()} == {"net: a": 499, "probe: c": 1}
    plot_log(log, tmp_path / "losses.svg")
    picture = ElementTree.parse(tmp_path / "losses.svg").getroot()
    drawn = [part for part in picture.iter() if part.get("class") == "data"]
    assert [part.tag.rpartition("}")[2] for part in drawn] == ["path", "circle"]
    places = [float(point.split()[0]) for point in drawn[0].get("d").removeprefix("M").split("L")]
    assert max(places) - min(places) > 0.8 * WIDTH
    titles = [part.text for part in picture.iter() if part.tag.endswith("}text") and ": " in part.text]
    assert [title.split("  ")[0] for title in titles] == ["net: a", "probe: c"]
