"""Random checkpoints, made once a session."""

from __future__ import annotations

from pathlib import Path

import oracle
import pytest


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """(kind, solver) -> (diffusers pipeline, the folder it was saved to)."""
    made = {}

    def get(kind: str, solver: str = "unipc", **dit) -> tuple[object, Path]:
        key = (kind, solver, *sorted(dit.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(kind)
            pipeline = oracle.pipeline(kind, solver=solver, **dit)
            pipeline.save_pretrained(folder)
            made[key] = (pipeline, folder)
        return made[key]

    return get
