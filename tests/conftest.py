"""Shared by all tests: one thread a process, so that timings and tolerances do not depend on the machine's cores, and
for each test a HELIOS_HOME of its own, so that no film takes its chunks from another test's."""

from __future__ import annotations

import itertools
import os
import signal

import pytest
from hypothesis import settings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# No stopwatch on a machine that does other things too; and what fails is due to a change, not to the dice.
settings.register_profile("helios", deadline=None, derandomize=True)
settings.load_profile("helios")


# A shell ignores Ctrl-C for what it starts in the background, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def homes(tmp_path_factory):
    """New folders, one after another, which do not exist yet."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def helios_home(homes, monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", str(next(homes)))


@pytest.fixture(scope="session")
def distilled(tmp_path_factory):
    """The folder of a distilled checkpoint with random weights, for tests that only read it."""
    import oracle  # with diffusers, which few tests need

    folder = tmp_path_factory.mktemp("distilled")
    oracle.pipeline("distilled").save_pretrained(folder)
    return folder
