"""Shared by all tests: one thread a process, so that timings and tolerances do not depend on the machine's cores, and
for each test a HELIOS_HOME of its own, so that no film takes its chunks from another test's."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


# No stopwatch on a machine that does other things too; and what fails is due to a change, not to the dice.
settings.register_profile("helios", deadline=None, derandomize=True)
settings.load_profile("helios")


@pytest.fixture(autouse=True)
def helios_home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path_factory.mktemp("home")))
