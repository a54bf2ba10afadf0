"""Kernels are tried before films take them: what the trial finds, what is kept of it, and what runs afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import helios_kernels
from helios_cli import machine
from helios_cli.child import ChildError, ChildStoppedError
from helios_cli.engine import trial
from helios_cli.errors import MachineError
from helios_cli.weights import hub
from helios_kernels import dispatch
from helios_kernels import trial as kernel_trial
from helios_kernels.check import OPS
from helios_kernels.dispatch import FP8_OPERATIONS, Backend, backend
from helios_kernels.trial import operations
from helios_kernels.trial import trial as try_operation
from support.renders import models_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FOUND = Backend("sm_90", "Triton 3.7.1 on a GPU", "a GPU")


@pytest.fixture
def gpu(monkeypatch) -> Iterator[None]:
    """A machine on which Triton could run, as far as the dispatcher knows."""
    for module in (dispatch, helios_kernels):
        monkeypatch.setattr(module, "find_triton", lambda: FOUND)
    monkeypatch.delenv("HELIOS_KERNELS", raising=False)
    begin_anew()
    yield
    monkeypatch.undo()
    begin_anew()


def begin_anew() -> None:
    """Reset the state that a new process starts with."""
    kernel_trial._tried_here.clear()
    kernel_trial.use(None)


RIGHT = dict.fromkeys(operations("sm_90"))
"""The trial's findings for kernels that are right."""


class Trial:
    """A stand-in for the trial's processes. A process tries its operations one by one and dies at those of `ends`
    that still have errors left. `faults` are its findings."""

    def __init__(self, faults: dict | None = None, ends: dict[str, list[Exception]] | None = None) -> None:
        self.faults, self.ends, self.asked = {**RIGHT, **(faults or {})}, ends or {}, []

    def __call__(self, module, question, **how):
        assert (module, how["environment"]) == ("helios_cli.engine.trial", {"HELIOS_KERNELS": "triton"})
        self.asked.append(question["names"])
        rows = []
        for name in question["names"]:
            rows.append({"operation": name})
            if self.ends.get(name):
                raise self.ends[name].pop(0)(rows)
            rows.append({"operation": name, "fault": self.faults[name]})
        return rows


def lost(why: str):
    return lambda rows: ChildStoppedError(why, hint="", answers=rows)


def trying(monkeypatch, trial_of: Trial) -> list:
    """Install the stand-in. Returns the list of requests, process by process."""
    monkeypatch.setattr(trial, "ask", trial_of)
    return trial_of.asked


def test_kernels_that_are_right_run_from_then_on(gpu, monkeypatch):
    assert backend().name == "reference" and "have not been tried" in backend().reason
    asked = trying(monkeypatch, Trial())
    before, after = trial.settle(GPU)
    assert asked == [list(RIGHT)]
    assert before == trial.NOTICE and after == "kernels: triton, Triton 3.7.1 on a GPU, tried here and right"
    begin_anew()
    assert list(trial.settle(GPU)) == [] and len(asked) == 1
    assert (backend().chip, backend().device, backend().off) == ("sm_90", "a GPU", {})


def test_whoever_loads_a_model_goes_by_the_trial(gpu, monkeypatch):
    """Measurements load models as well, and try nothing."""
    trying(monkeypatch, Trial())
    list(trial.settle(GPU))
    begin_anew()
    models_of(hub.resolve("tiny"))
    assert backend().chip == "sm_90"


def test_one_that_is_wrong_is_left_to_pytorch_alone(gpu, monkeypatch):
    trying(monkeypatch, Trial({"dmd_step": "small: bfloat16: error 1", "quantize": "one-row: RuntimeError: no"}))
    *_, told = trial.settle(GPU)
    assert told.endswith("on a GPU, tried here and right except for quantize: one-row: RuntimeError: no, and 1 more")
    begin_anew()
    assert list(trial.settle(GPU)) == [] and backend().chip == "sm_90"
    with torch.no_grad():
        on_gpu = torch.zeros(1).as_subclass(OnGpu)
        assert [name for name in RIGHT if not helios_kernels.runs(on_gpu, name)] == ["quantize", "dmd_step"]


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_where_all_are_wrong_none_runs(gpu, monkeypatch):
    trying(monkeypatch, Trial(dict.fromkeys(RIGHT, "no")))
    *_, told = trial.settle(GPU)
    assert told.endswith(f"are wrong: modulated_norm: no, and {len(RIGHT) - 1} more")
    assert backend().chip is None


def test_one_that_is_lost_once_is_tried_again_behind_the_others(gpu, monkeypatch):
    asked = trying(monkeypatch, Trial(ends={"renoise": [lost("was stopped by SIGKILL")]}))
    *_, told = trial.settle(GPU)
    assert told.endswith("tried here and right") and backend().off == {}
    names = list(RIGHT)
    behind = names[names.index("renoise") + 1 :]
    assert asked == [names, [*behind, "renoise"]]


def test_one_that_is_lost_twice_is_left_off_and_the_others_run(gpu, monkeypatch):
    twice = [lost("was stopped by SIGKILL"), lost("took more than 300 s")]
    asked = trying(monkeypatch, Trial(ends={"attention": twice}))
    list(trial.settle(GPU))
    assert backend().off == {"attention": "took more than 300 s, twice"} and len(asked) == 2
    begin_anew()
    assert list(trial.settle(GPU)) == [] and backend().chip == "sm_90"


def test_what_there_was_no_time_for_is_off_until_it_was_tried(gpu, monkeypatch):
    """By the next film; and for good, if there is none then."""
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    asked = trying(monkeypatch, Trial())
    *_, told = trial.settle(GPU)
    assert "there was no time to try it" in told and backend().chip is None and asked == []
    begin_anew()
    monkeypatch.setattr(trial, "SECONDS", 900.0)
    *_, told = trial.settle(GPU)
    assert told.endswith("tried here and right") and asked == [list(RIGHT)]


def test_what_there_was_no_time_for_twice_is_left_off(gpu, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    trying(monkeypatch, Trial())
    for _ in range(2):
        assert len(list(trial.settle(GPU))) == 2
        begin_anew()
    assert list(trial.settle(GPU)) == [] and backend().chip is None


@pytest.mark.parametrize(
    "error", [ChildError("failed: no driver", hint="", answers=[]), MachineError("the device ran out of memory")]
)
def test_a_trial_that_did_not_begin_says_nothing_of_the_kernels(gpu, monkeypatch, error):
    trying(monkeypatch, Trial(ends={"modulated_norm": [lambda rows: error]}))
    *_, told = trial.settle(GPU)
    assert told == f"kernels could not be tried, so this film is rendered without them: {error.message}"
    assert not (machine.home() / machine.TRIED).exists()
    asked = trying(monkeypatch, Trial())
    assert len(list(trial.settle(GPU))) == 2 and len(asked) == 1


def test_other_kernels_are_tried_anew(gpu, monkeypatch):
    trying(monkeypatch, Trial())
    list(trial.settle(GPU))
    begin_anew()
    stored = json.loads((machine.home() / machine.TRIED).read_text())
    stored["devices"]["a GPU"]["made_with"] = "torch 2.11.0, triton 3.6.0, kernels 000000000000"
    (machine.home() / machine.TRIED).write_text(json.dumps(stored))
    assert len(list(trial.settle(GPU))) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "devices": {"a GPU": {"made_with": 3}}}'])
def test_a_damaged_file_is_no_file(gpu, monkeypatch, text):
    (machine.home() / machine.TRIED).parent.mkdir(parents=True, exist_ok=True)
    (machine.home() / machine.TRIED).write_text(text)
    trying(monkeypatch, Trial())
    assert len(list(trial.settle(GPU))) == 2


def test_a_home_that_cannot_be_written_is_no_obstacle(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "file" / "home"))
    asked = trying(monkeypatch, Trial())
    assert len(list(trial.settle(GPU))) == 2 and backend().chip == "sm_90"
    assert list(trial.settle(GPU)) == [] and len(asked) == 1


@pytest.mark.parametrize(("choice", "name"), [("triton", "triton"), ("reference", "reference")])
def test_who_insists_is_not_kept_waiting(gpu, monkeypatch, choice, name):
    monkeypatch.setenv("HELIOS_KERNELS", choice)
    asked = trying(monkeypatch, Trial({"renoise": "no"}))
    assert list(trial.settle(GPU)) == [] and asked == []
    assert backend().name == name


def test_a_cpu_has_nothing_to_try(gpu, monkeypatch):
    asked = trying(monkeypatch, Trial())
    assert list(trial.settle(CPU)) == [] and asked == []


# The trial itself, where PyTorch stands in for the kernels


def test_the_twins_pass_the_trial():
    assert [try_operation(CPU, name) for name in ("renoise", "dmd_step")] == [None, None]


def test_an_operation_that_a_chip_lacks_is_not_tried_there():
    convolutions = {"causal_conv", "causal_conv_norm"}  # TMA boxes
    assert {name for name in OPS if name not in operations("sm_86")} == {*FP8_OPERATIONS, *convolutions}
    assert [name for name in OPS if name not in operations("sm_90")] == ["attention_pointers"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda run: lambda **inputs: run(**inputs) * 1.05, "bfloat16: error"),
        (lambda run: lambda **inputs: run(**inputs) * float("nan"), "bfloat16: error nan"),
        (lambda run: lambda **inputs: torch.zeros(1) @ torch.zeros(2), "RuntimeError: "),
    ],
)
def test_a_kernel_that_is_wrong_fails_the_trial(monkeypatch, broken, said):
    op = OPS["renoise"]
    monkeypatch.setitem(OPS, "renoise", replace(op, run=broken(op.run), twin=op.reference))
    first = next(case.id for case in op.cases if case.interpreted)
    assert try_operation(CPU, "renoise").startswith(f"{first}: {said}") and try_operation(CPU, "dmd_step") is None


def test_the_process_announces_what_it_tries():
    rows = list(trial.rows({"device": "cpu", "names": ["renoise", "dmd_step"]}))
    announced = [{"operation": "renoise"}, {"operation": "dmd_step"}]
    assert rows == [row for one in announced for row in (one, {**one, "fault": None})]
