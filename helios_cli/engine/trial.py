"""Tries Triton kernels once on each GPU before a film uses them, in separate processes that may crash or hang."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

import helios_kernels
from helios_cli import machine
from helios_cli.child import ChildError, ask, serve
from helios_cli.device import pick_device
from helios_cli.engine.gpu import recall_kernels
from helios_cli.engine.memory import memory_errors
from helios_cli.errors import HeliosError
from helios_kernels import trial
from helios_kernels.trial import Verdicts

NOTICE = "Triton kernels are tried on this GPU before films take them: about two minutes, once"

SECONDS = 900.0
"""Time limit of the whole trial, nearly all of which is compiling."""

OPERATION_SECONDS = 300
"""Time limit of one operation; a kernel that hangs ends with its process."""


def settle(device: torch.device) -> Iterator[str]:
    """Decide which kernels run on `device` in this process; those without a verdict are tried.

    Yields notices for the user: before a trial, which takes minutes, and its result.
    """
    recall_kernels()
    if device.type != "cuda" or not helios_kernels.is_untried():
        return
    yield NOTICE
    found = helios_kernels.find_triton()
    try:
        verdicts = _try(device, trial.operations(found.chip or ""), trial.of(found.device) or Verdicts({}, {}))
    except HeliosError as error:  # no memory, no device: this says nothing about the kernels
        yield f"kernels could not be tried, so this film is rendered without them: {error.message}"
        return
    with contextlib.suppress(OSError):  # a home that cannot be written: the next process tries again
        trial.keep(found.device, verdicts, machine.home() / machine.TRIED)
    yield f"kernels: {helios_kernels.backend().name}, {helios_kernels.backend().reason}"


def _try(device: torch.device, names: tuple[str, ...], known: Verdicts) -> Verdicts:
    """Try the operations without a verdict, and return all verdicts. HeliosError if the trial could not begin.

    An operation whose process is lost is tried once more, after the others, and turned off if that fails too.
    """
    faults, lost = dict(known.faults), dict(known.lost)
    waiting, end = [name for name in names if name not in faults], time.monotonic() + SECONDS
    while waiting and (left := end - time.monotonic()) > 0:
        rows, error = _ask(device, waiting, left)
        faults.update({row["operation"]: row["fault"] for row in rows if "fault" in row})
        waiting = [name for name in waiting if name not in faults]
        if error and (at := rows[-1]["operation"]) in waiting:
            waiting.remove(at)
            if at in lost:
                faults[at] = f"{error.message}, twice"
            else:
                lost[at] = error.message
                waiting.append(at)
    for name in waiting:
        if name in known.lost:
            faults[name] = f"{known.lost[name]}, and there was no time to try it again"
        else:
            lost.setdefault(name, "there was no time to try it")
    return Verdicts(faults, {name: why for name, why in lost.items() if name not in faults})


def _ask(device: torch.device, names: list[str], seconds: float) -> tuple[list[dict], ChildError | None]:
    """Return what a process reports of the operations, and the one it was lost to. HeliosError if it reached none."""
    question = {"device": str(device), "names": names}
    try:
        return ask(__name__, question, environment={"HELIOS_KERNELS": "triton"}, timeout=seconds), None
    except ChildError as error:
        if not error.answers:
            raise
        return error.answers, error


def rows(question: dict) -> Iterator[dict]:
    """Run the trial; each operation is announced first, so that the one that hangs is known."""
    device = pick_device(question["device"])
    recall_kernels()
    with memory_errors():
        for name in question["names"]:
            yield {"operation": name}
            yield {"operation": name, "fault": trial.trial(device, name)}


if __name__ == "__main__":
    serve(rows, seconds=OPERATION_SECONDS)
