"""Serves a driver as a child process: messages come on standard input, answers go to standard output. No torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from helios_cli import __version__
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
    """Say hello, and answer messages on standard input, a JSON line each, until it ends, on standard output.

    What else the process prints goes to standard error. When the driver goes, however it ends, this process does too.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    replies.write(json.dumps(hello()) + "\n")
    messages: SimpleQueue[Message | None] = SimpleQueue()
    threading.Thread(target=_read_messages, args=(messages,), name="messages", daemon=True).start()
    while (message := messages.get()) is not None:
        for reply in answer(message):
            replies.write(json.dumps(reply) + "\n")


def _read_messages(messages: SimpleQueue[Message | None]) -> None:
    for line in sys.stdin:
        messages.put(json.loads(line))
    messages.put(None)
    os.kill(os.getpid(), signal.SIGTERM)  # in the middle of a render: chunks that are computed are made safe
    time.sleep(LAST_SECONDS)
    os.killpg(0, signal.SIGKILL)  # with what it has started: the driver made it the leader of its group
