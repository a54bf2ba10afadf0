"""A fixture for tests that start Ray, which are the first ones."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Put the tests that start Ray first. They wait more than they compute, and for each other (`with_ray`): of several
    processes that test, one runs them all while the others keep the cores busy."""
    items.sort(key=lambda item: "with_ray" not in item.fixturenames)


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
