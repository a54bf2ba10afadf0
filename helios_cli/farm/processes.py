"""Workers as child processes of this machine (`child`)."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from helios_cli.child import Child, Inbox
from helios_cli.farm.pool import STOP_SECONDS, Message


class Processes:
    """A pool of child processes, by the environment of each; they run `python -m MODULE N`,
    which calls `serving.serve`, as one of N.

    A worker ends when its standard input does: even a killed driver leaves none behind.
    """

    def __init__(
        self, environments: Mapping[str, Mapping[str, str]], *, module: str = "helios_cli.farm.worker"
    ) -> None:
        self._environments, self._module = environments, module
        self._inbox = Inbox()
        self._children: dict[str, Child] = {}
        for name in environments:
            self._start(name)

    @property
    def names(self) -> Sequence[str]:
        return list(self._environments)

    def sees(self, name: str, path: Path) -> bool:
        return True

    def send(self, name: str, message: Message) -> None:
        self._children[name].send(message)

    def receive(self, timeout: float) -> list[tuple[str, Message]]:
        return [
            (child.name, {"lost": _reason(child)} if message is None else message)
            for child, message in self._inbox.receive(timeout)
        ]

    def renew(self, name: str) -> None:
        self.end(name)
        self._start(name)

    def end(self, name: str) -> None:
        self._children.pop(name).end()

    def close(self) -> None:
        children, self._children = list(self._children.values()), {}
        for child in children:
            child.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            child.code(max(0.0, deadline - time.monotonic()))
            child.end()
        self._inbox.close()

    def _start(self, name: str) -> None:
        count, environment = len(self._environments), self._environments[name]
        self._children[name] = Child(name, self._module, str(count), inbox=self._inbox, environment=environment)


def _reason(child: Child) -> str:
    """Say how a worker ended that has closed its output."""
    code = child.code(STOP_SECONDS)
    if code is None:
        return "it closed its output"
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), perhaps because memory ran out"
    if code < 0:
        return f"it was stopped by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
