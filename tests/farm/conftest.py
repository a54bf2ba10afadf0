"""A fixture for tests that start Ray."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def with_ray(monkeypatch):
    """Let Ray's processes find the stand-in for a worker. Without Ray the test fails, and says what it needs.

    One test at a time has it, also of tests that run side by side: Ray finds every cluster of its machine.
    """
    assert importlib.util.find_spec("ray"), "this test needs Ray: pip install -e '.[dev,ray]'"
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    with Path(tempfile.gettempdir(), "helios-tests-of-ray").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield
