"""Kernels are tried before films take them: what the trial finds, what is kept of it, and what runs afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from films import models_of

import helios_kernels
from helios_cli import machine
from helios_cli.child import ChildError
from helios_cli.engine import trial
from helios_cli.errors import MachineError
from helios_cli.weights import hub
from helios_kernels import dispatch, tried
from helios_kernels.dispatch import Backend, backend
from helios_kernels.registry import OPS
from helios_kernels.trial import trial as try_operations

CPU, GPU = torch.device("cpu"), torch.device("cuda")
FOUND = Backend("sm_90", "Triton 3.7.1 on a GPU", "a GPU")


@pytest.fixture
def gpu(monkeypatch) -> Iterator[None]:
    """A machine on which Triton could run, as far as the dispatcher knows."""
    for module in (dispatch, helios_kernels):
        monkeypatch.setattr(module, "find_triton", lambda: FOUND)
    monkeypatch.setattr(dispatch, "backend", backend)
    monkeypatch.delenv("HELIOS_KERNELS", raising=False)
    begin_anew()
    yield
    monkeypatch.undo()
    begin_anew()


def begin_anew() -> None:
    """What a process of its own would begin with."""
    tried._found.clear()
    tried.use(None)
    backend.cache_clear()


def answering(monkeypatch, answer) -> list[dict]:
    """Lets `answer` stand in for the trial's process; returns the questions it gets."""
    asked = []

    def ask(module, question, **how):
        asked.append({"module": module, **question, **how["environment"]})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(trial, "ask", ask)
    return asked


RIGHT = [{"case": "renoise small", "fault": None}, {"case": "dmd_step small", "fault": None}]
WRONG = [RIGHT[0], {"case": "dmd_step small", "fault": "bfloat16: error 1, bound 0.01"}]


def test_kernels_that_are_right_run_from_then_on(gpu, monkeypatch):
    assert backend().name == "reference" and "have not been tried" in backend().reason
    asked = answering(monkeypatch, RIGHT)
    before, after = trial.settle(GPU)
    assert asked == [{"module": "helios_cli.engine.trial", "device": "cuda", "HELIOS_KERNELS": "triton"}]
    assert before == trial.NOTICE and after == "kernels: triton, Triton 3.7.1 on a GPU, tried here and right"
    begin_anew()
    assert list(trial.settle(GPU)) == [] and len(asked) == 1
    assert (backend().chip, backend().device) == ("sm_90", "a GPU")


def test_whoever_loads_a_model_goes_by_the_trial(gpu, monkeypatch):
    """Measurements load models as well, and try nothing."""
    answering(monkeypatch, RIGHT)
    list(trial.settle(GPU))
    begin_anew()
    models_of(hub.resolve("tiny"))
    assert backend().chip == "sm_90"


def test_kernels_that_are_wrong_stay_off_and_say_what_it_was(gpu, monkeypatch):
    answering(monkeypatch, [*WRONG, {"case": "quantize small", "fault": "RuntimeError: no"}])
    *_, told = trial.settle(GPU)
    assert told.endswith("are wrong: dmd_step small: bfloat16: error 1, bound 0.01, and 1 more")
    begin_anew()
    assert list(trial.settle(GPU)) == [] and backend().chip is None


def test_a_trial_that_takes_its_process_down_found_a_fault(gpu, monkeypatch):
    answering(monkeypatch, ChildError("it was stopped by SIGSEGV", hint="", answers=RIGHT[:1]))
    *_, told = trial.settle(GPU)
    assert told.endswith("are wrong: the one after renoise small: it was stopped by SIGSEGV")


@pytest.mark.parametrize(
    "error", [ChildError("failed: no driver", hint="", answers=[]), MachineError("the device ran out of memory")]
)
def test_a_trial_that_did_not_begin_says_nothing_of_the_kernels(gpu, monkeypatch, error):
    answering(monkeypatch, error)
    *_, told = trial.settle(GPU)
    assert told == f"kernels could not be tried, so this film goes without: {error.message}"
    assert not machine.tried_file().exists()
    asked = answering(monkeypatch, RIGHT)
    assert len(list(trial.settle(GPU))) == 2 and len(asked) == 1


def test_other_kernels_are_tried_anew(gpu, monkeypatch):
    answering(monkeypatch, RIGHT)
    list(trial.settle(GPU))
    begin_anew()
    stored = json.loads(machine.tried_file().read_text())
    stored["devices"]["a GPU"]["made_with"] = "torch 2.11.0, triton 3.6.0, kernels 000000000000"
    machine.tried_file().write_text(json.dumps(stored))
    assert len(list(trial.settle(GPU))) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "devices": {"a GPU": {"made_with": 3}}}'])
def test_a_damaged_file_is_no_file(gpu, monkeypatch, text):
    machine.tried_file().parent.mkdir(parents=True, exist_ok=True)
    machine.tried_file().write_text(text)
    answering(monkeypatch, RIGHT)
    assert len(list(trial.settle(GPU))) == 2


def test_a_home_that_cannot_be_written_is_no_obstacle(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path / "file" / "home"))
    asked = answering(monkeypatch, RIGHT)
    assert len(list(trial.settle(GPU))) == 2 and backend().chip == "sm_90"
    assert list(trial.settle(GPU)) == [] and len(asked) == 1


@pytest.mark.parametrize(("choice", "name"), [("triton", "triton"), ("reference", "reference")])
def test_who_insists_is_not_kept_waiting(gpu, monkeypatch, choice, name):
    monkeypatch.setenv("HELIOS_KERNELS", choice)
    asked = answering(monkeypatch, WRONG)
    assert list(trial.settle(GPU)) == [] and asked == []
    assert backend().name == name


def test_a_cpu_has_nothing_to_try(gpu, monkeypatch):
    asked = answering(monkeypatch, RIGHT)
    assert list(trial.settle(CPU)) == [] and asked == []


# The trial itself, where PyTorch stands in for the kernels


def test_the_twins_pass_the_trial():
    found = dict(try_operations(CPU, "sm_90", ["renoise", "dmd_step"]))
    cases = [case for name in ("renoise", "dmd_step") for case in OPS[name].cases if case.interpreted]
    assert len(found) == len(cases) and set(found.values()) == {None}


def test_an_operation_that_a_chip_lacks_is_not_tried_there():
    assert "sm_80" not in OPS["quantize"].chips
    assert list(try_operations(CPU, "sm_80", ["quantize"])) == []


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
    monkeypatch.setitem(OPS, "renoise", replace(op, run=broken(op.run)))
    faults = list(dict(try_operations(CPU, "sm_90", ["renoise"])).values())
    assert faults and all(fault.startswith(said) for fault in faults)


def test_the_process_says_case_by_case():
    first = next(trial.rows({"device": "cpu"}))
    name, case = first["case"].split(" ", 1)
    assert case in {one.id for one in OPS[name].cases} and first["fault"] is None
