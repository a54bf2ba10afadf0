"""Serves a driver as a child process. Importing this does not import torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator

from helios_cli import __version__
from helios_cli.child import end_at_once, serve_lines
from helios_cli.farm.pool import Message

LAST_SECONDS = 15.0
"""Time for a worker to end by itself after its driver has gone."""


def hello() -> Message:
    """Return the first message of a worker."""
    versions = {
        "python": platform.python_version(),
        "helios": __version__,
        "torch": importlib.metadata.version("torch"),
    }
    return {"hello": {"host": socket.gethostname(), "pid": os.getpid(), "versions": versions}}


def serve(answer: Callable[[Message], Iterator[Message]]) -> None:
    """Say hello to the driver that has started this process, and answer its messages until it closes the pipe."""

    def talk(messages: Iterator[Message]) -> Iterator[Message]:
        yield hello()
        for message in messages:
            yield from answer(message)

    serve_lines(talk, at_loss=_stop)


def _stop() -> None:
    """End after the driver. In the middle of a render, chunks that are computed are made safe."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_SECONDS)
    end_at_once()
