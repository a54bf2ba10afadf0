"""Shell scripts that stand in for a program: an ffmpeg that fails, a driver's tool, a Python."""

from pathlib import Path

import pytest


def program(path: Path, script: str) -> Path:
    """Write an executable of bash at `path`; its folder is made."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def ffmpeg_program(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a stand-in for ffmpeg at `path`, and have helios take it."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program(path, script)))
