"""Pools of workers: what the driver asks of them, and the messages that go both ways.

Messages are plain dicts, so that they fit into JSON lines and into Ray. To a worker:

    {"identify": {"model", "options", "size", "guidance"}}  say what frames would be computed by
    {"render": {...}}                                       render a segment (`worker.Task`)

From a worker, in this order:

    {"hello": {"host", "pid", "versions"}}        once, when it has started
    {"identity": {"kind", "device"}}              the answer to identify
    {"event": ..., ...}                           an event of a render (`Event.to_dict`)
    {"chunk": {"fingerprint", "state", "key", "piece"}}  a finished chunk, unless the worker sees the film's folder
    {"done": {"kind", "fingerprints", "keys"}}    the end of a segment
    {"failed": {"error", "message", "hint"}}      the end of an identification or a segment that failed

The pool itself adds {"lost": reason} when a worker has ended, and {"waiting": reason} while it cannot start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

Message = dict[str, Any]

STOP_SECONDS = 12.0
"""Time for workers to make their computed chunks safe after a stop; those that are left then are killed."""

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Environment of workers with more threads than there are cores: a thread that waits leaves its core to others."""


class Pool(Protocol):
    """Workers, which are known by their names."""

    @property
    def names(self) -> Sequence[str]: ...

    def sees(self, name: str, path: Path) -> bool:
        """Return whether a worker sees the file or folder at `path` as the driver does, so that it need not travel."""
        ...

    def send(self, name: str, message: Message) -> None:
        """Send a message to a worker, which answers it before the next one. Does not wait."""
        ...

    def receive(self, timeout: float) -> list[tuple[str, Message]]:
        """Return what workers have sent, in their order; wait at most `timeout` seconds for the first."""
        ...

    def renew(self, name: str) -> None:
        """End what is left of a worker, and start it anew."""
        ...

    def end(self, name: str) -> None:
        """End what is left of a worker for good: nothing more comes from it, and its device is free."""
        ...

    def close(self) -> None:
        """End all workers; chunks that are computed are made safe first, for some seconds."""
        ...
