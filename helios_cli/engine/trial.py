"""Triton kernels are tried once on each GPU before a film takes them, in a process of its own that may be lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

import helios_kernels
from helios_cli import machine
from helios_cli.child import ChildError, ask, serve
from helios_cli.engine.calls import memory_told
from helios_cli.engine.gpu import recall_kernels
from helios_cli.errors import HeliosError
from helios_kernels import dispatch, tried
from helios_kernels.trial import trial

NOTICE = "Triton kernels are tried on this GPU before films take them: about two minutes, once"

SECONDS = 900.0
"""Of the whole trial, nearly all of which is compiling. A kernel that hangs ends with it."""


def settle(device: torch.device) -> Iterator[str]:
    """Whether kernels run on `device`, from now on and in this process; where nobody knows, they are tried.

    Yields what to tell the user: before it takes minutes, and what came of it.
    """
    recall_kernels()
    if device.type != "cuda" or not helios_kernels.is_untried():
        return
    yield NOTICE
    try:
        faults = _faults(device)
    except HeliosError as error:  # no memory, no device: nothing is known of the kernels
        yield f"kernels could not be tried, so this film goes without: {error.message}"
        return
    with contextlib.suppress(OSError):  # a home that cannot be written: they are tried again next time
        tried.keep(helios_kernels.find_triton().device, faults, machine.tried_file())
    dispatch.backend.cache_clear()
    yield f"kernels: {helios_kernels.backend().name}, {helios_kernels.backend().reason}"


def _faults(device: torch.device) -> list[str]:
    """What is wrong with the kernels. HeliosError if the trial could not begin."""
    try:
        rows = ask(__name__, {"device": str(device)}, environment={"HELIOS_KERNELS": "triton"}, timeout=SECONDS)
    except ChildError as error:
        if not error.answers:
            raise
        rows = [*error.answers, {"case": f"the one after {error.answers[-1]['case']}", "fault": error.message}]
    return [f"{row['case']}: {row['fault']}" for row in rows if row["fault"]]


def rows(question: dict) -> Iterator[dict]:
    """The trial itself, a row a case."""
    device = machine.pick_device(question["device"])
    recall_kernels()
    with memory_told():
        for case, fault in trial(device, helios_kernels.find_triton().chip):
            yield {"case": case, "fault": fault}


if __name__ == "__main__":
    serve(rows)
