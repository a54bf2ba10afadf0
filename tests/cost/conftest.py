"""No model is downloaded and nothing is measured, whatever this machine has."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def bare_machine(homes, monkeypatch):
    empty = next(homes)
    empty.mkdir()
    monkeypatch.setenv("HELIOS_HOME", str(empty))
    monkeypatch.delenv("HELIOS_MODEL", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(empty))
