"""A fixture for tests that start Ray."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def with_ray(monkeypatch):
    """Let Ray's processes find the stand-in for a worker. Without Ray the test fails, and says what it needs."""
    assert importlib.util.find_spec("ray"), "this test needs Ray: pip install -e '.[dev,ray]'"
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
