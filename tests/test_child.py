"""Processes that answer, fail, are killed and hang: what comes of each."""

from __future__ import annotations

import os
import tempfile

import pytest

from helios_cli import child
from helios_cli.child import ChildError, ChildStoppedError, ask, serve
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.problems import Problem, RecipeError
from support.programs import program
from support.waiting import LONGEST

pytestmark = pytest.mark.process


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Lets a shell script stand in for Python; its last two arguments are question and answer."""

    def use(script: str) -> None:
        monkeypatch.setattr(child.sys, "executable", str(program(tmp_path / "python", script)))
        monkeypatch.delenv("HELIOS_DEBUG", raising=False)

    return use


def test_answers_come_in_order_with_the_environment(answering):
    answering('echo "$6" > "$7"; echo "{\\"told\\": \\"$TOLD\\"}" >> "$7"')
    assert ask("chip", {"part": "x"}, environment={"TOLD": "you"}) == [{"part": "x"}, {"told": "you"}]


def test_an_error_of_helios_is_raised_again(answering):
    answering('echo \'{"error": "InputError", "message": "no", "hint": "yes"}\' > "$7"')
    with pytest.raises(InputError, match="no") as raised:
        ask("chip", {})
    assert raised.value.hint == "yes"


def test_an_error_of_a_class_elsewhere_is_raised_as_what_it_is_here(tmp_path, monkeypatch):
    """Exit code, message and hint are those of the process that raised it."""
    raised = [RecipeError([Problem("shots.toml", "no shots")]), ChildStoppedError("it hangs", hint="", answers=[])]
    for error, kind in zip(raised, (InputError, MachineError), strict=True):
        answer = tmp_path / kind.__name__

        def refuse(_: dict, error=error):
            raise error

        monkeypatch.setattr(child.sys, "argv", ["chip", "{}", str(answer)])
        serve(refuse)
        with pytest.raises(kind) as again:
            child._read(answer.read_bytes())
        assert (again.value.message, again.value.exit_code) == (error.message, error.exit_code)


def test_modules_of_the_current_folder_are_not_taken(tmp_path, monkeypatch):
    for name in ("random", "torch", "numpy", "runpy", "helios_cli"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not what was meant')")
    monkeypatch.chdir(tmp_path)
    (row,) = ask("helios_cli.bench.chip", {"part": "ceiling", "device": "cpu", "dtype": "float32"})
    assert row["product"] > 0


def test_what_was_raised_is_found_among_what_followed_it(answering):
    answering(
        'echo \'{"row": 1}\' > "$7"; printf \'{"row": \' >> "$7"\n'
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
    answering(f'echo \'{{"row": 1}}\' > "$7"; {script}')
    with pytest.raises(ChildStoppedError, match=told) as raised:
        ask("chip", {}, timeout=seconds)
    assert raised.value.answers == [{"row": 1}] and raised.value.exit_code == MachineError.exit_code


def test_nothing_of_it_stays(answering, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    os.mkdir(tmp_path / "scratch")
    answering("exit 3")
    with pytest.raises(ChildError, match="exit code 3"):
        ask("chip", {})
    assert not os.listdir(tmp_path / "scratch")
