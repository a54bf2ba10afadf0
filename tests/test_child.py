"""Processes that answer, fail, are killed and hang: what comes of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from helios_cli import child
from helios_cli.child import Child, ChildError, ChildStoppedError, Inbox, ask
from helios_cli.errors import HeliosError, InputError, MachineError
from helios_cli.recipe.problems import Problem, RecipeError
from support.programs import program
from support.waiting import LONGEST, alive, wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Lets a shell script stand in for Python; the question is the first line of its input."""

    def use(script: str) -> None:
        monkeypatch.setattr(child.sys, "executable", str(program(tmp_path / "python", script)))
        monkeypatch.delenv("HELIOS_DEBUG", raising=False)

    return use


def test_answers_come_in_order_with_the_environment(answering):
    answering('head -n 1; echo "{\\"told\\": \\"$TOLD\\"}"')
    assert ask("chip", {"part": "x"}, environment={"TOLD": "you"}) == [{"part": "x"}, {"told": "you"}]


def test_an_error_of_helios_is_raised_again(answering):
    answering('echo \'{"failed": {"error": "InputError", "message": "no", "hint": "yes"}}\'')
    with pytest.raises(InputError, match="no") as raised:
        ask("chip", {})
    assert raised.value.hint == "yes"


def test_an_error_of_a_class_elsewhere_is_raised_as_what_it_is_here():
    """Exit code, message and hint are those of the process that raised it."""
    raised = [RecipeError([Problem("shots.toml", "no shots")]), ChildStoppedError("it hangs", hint="", answers=[])]
    for error, kind in zip(raised, (InputError, MachineError), strict=True):
        again = HeliosError.from_dict(json.loads(json.dumps(error.to_dict())))
        assert type(again) is kind
        assert (again.message, again.hint, again.exit_code) == (error.message, error.hint, error.exit_code)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes a module that a child process can run; returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


def test_what_a_child_prints_is_no_message(modules):
    code = "import os\nfrom helios_cli.child import serve\n"
    code += "def answers(q):\n  print('{')\n  os.system('echo noise')\n  yield {'row': q['part']}\nserve(answers)\n"
    assert ask(modules("noisy", code), {"part": "x" * 10**6}) == [{"row": "x" * 10**6}]


def test_a_step_that_hangs_ends_its_process(modules):
    code = "import time\nfrom helios_cli.child import serve\n"
    code += "def answers(q):\n  yield {'row': 1}\n  time.sleep(1000)\nserve(answers, seconds=2)\n"
    with pytest.raises(ChildStoppedError, match="took too long for one step") as raised:
        ask(modules("hanging", code), {})
    assert raised.value.answers == [{"row": 1}]


def test_a_child_ends_with_its_parent_and_what_it_started_with_it(modules):
    """First it is ended, then its parent is killed while it computes."""
    code = "import os, subprocess, time\nfrom helios_cli.child import serve_lines\n"
    code += "def talk(messages):\n  yield {'pids': [os.getpid(), subprocess.Popen(['sleep', '1000']).pid]}\n"
    code += "  time.sleep(1000)\nserve_lines(talk)\n"
    name = modules("busy", code)
    inbox = Inbox()
    busy = Child("busy", name, inbox=inbox)
    pids = inbox.get(LONGEST)[1]["pids"]
    assert all(map(alive, pids))
    busy.end()
    assert inbox.receive(0) == []
    wait_until(lambda: not any(map(alive, pids)))
    parent = "from helios_cli.child import Child, Inbox\ninbox = Inbox()\n"
    parent += f"Child('busy', '{name}', inbox=inbox)\nprint(*inbox.get()[1]['pids'], flush=True)\ninbox.get()\n"
    killed = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in killed.stdout.readline().split()]
    assert all(map(alive, pids))
    killed.kill()
    killed.communicate(timeout=LONGEST)
    wait_until(lambda: not any(map(alive, pids)))


def test_modules_of_the_current_folder_are_not_taken(tmp_path, monkeypatch):
    for name in ("random", "torch", "numpy", "runpy", "helios_cli"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not what was meant')")
    monkeypatch.chdir(tmp_path)
    (row,) = ask("helios_cli.bench.chip", {"part": "ceiling", "device": "cpu", "dtype": "float32"})
    assert row["product"] > 0


def test_what_was_raised_is_found_among_what_followed_it(answering):
    answering(
        "echo '{\"row\": 1}'; printf '{\"row\": '\n"
        "cat >&2 <<'END'\nTraceback (most recent call last):\n"
        '  File "x.py", line 1\ntorch.AcceleratorError: CUDA error: an illegal memory access was encountered\n'
        "CUDA kernel errors might be reported asynchronously\n"
        "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\nEND\nexit 1"
    )
    with pytest.raises(ChildError, match=r"chip failed: torch\.AcceleratorError: CUDA error: an illegal") as raised:
        ask("chip", {})
    assert raised.value.answers == [{"row": 1}]  # and not the line that was cut
    assert "asynchronously" in raised.value.__notes__[0]
    assert not isinstance(raised.value, MachineError)


@pytest.mark.parametrize(
    ("script", "seconds", "told"),
    [("kill -9 $$", LONGEST, "stopped by SIGKILL"), (f"exec sleep {LONGEST}", 5, "more than 5 s")],
)
def test_one_that_is_killed_or_hangs_is_the_machines_affair(answering, script, seconds, told):
    answering(f"echo '{{\"row\": 1}}'; {script}")
    with pytest.raises(ChildStoppedError, match=told) as raised:
        ask("chip", {}, timeout=seconds)
    assert raised.value.answers == [{"row": 1}] and raised.value.exit_code == MachineError.exit_code


def test_nothing_of_it_stays(answering, tmp_path, monkeypatch):
    """Nor of what it was killed in the middle of."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    os.mkdir(tmp_path / "scratch")
    answering("touch $(mktemp); exit 3")
    with pytest.raises(ChildError, match="exit code 3"):
        ask("chip", {})
    answering("touch $(mktemp); kill -9 $$")
    with pytest.raises(ChildStoppedError):
        ask("chip", {})
    assert not os.listdir(tmp_path / "scratch")
