"""Which weights a checkpoint holds, to the last value, without reading tens of gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.hub import COMMIT

READ_WHOLE = 64 * 2**20
"""Checkpoints up to this many bytes are hashed: a twentieth of a second for the one in the package."""


def weights_identity(checkpoint: Checkpoint) -> str:
    """Equal for equal weights and configuration, different for different ones; 64 hex digits.

    `Checkpoint.fingerprint` covers everything but the tensors' values. Those are known by the commit of a Hub snapshot;
    for a small folder by their hash; for a large one by each file's size and time of change, so that a copy of it
    counts as another model, and one saved again in its place does too.
    """
    digest = hashlib.sha256(checkpoint.fingerprint().encode())
    files = sorted({tensor.file for part in checkpoint.components.values() for tensor in part.tensors.values()})
    commit = _commit(checkpoint.path)
    small = sum(file.stat().st_size for file in files) <= READ_WHOLE
    for file in files:
        digest.update(f"{file.relative_to(checkpoint.path).as_posix()}\0".encode())
        digest.update((commit or (_content(file) if small else _state(file))).encode())
    return digest.hexdigest()


def _commit(folder: Path) -> str | None:
    """The commit of a snapshot in the Hub cache, which says what every file in it holds."""
    folder = folder.absolute()
    in_cache = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.name if in_cache and COMMIT.fullmatch(folder.name) else None


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _state(file: Path) -> str:
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
