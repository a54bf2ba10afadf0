"""Workers as child processes of this machine: messages are JSON lines on their standard input and output."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helios_cli.child import command_of
from helios_cli.farm.pool import STOP_SECONDS, Message

READ_BYTES = 2**20


@dataclass
class _Child:
    """A worker process. `rest` is the beginning of a line that it has not ended."""

    process: subprocess.Popen[bytes]
    rest: bytes = b""


class Processes:
    """A pool of child processes, by the environment of each; they run `python -m MODULE N`,
    which calls `worker.serve`, as one of N.

    Each is the leader of a process group: a Ctrl-C on the terminal reaches the driver alone, and ends with the worker
    whatever it has started. A worker ends when its standard input does: even a killed driver leaves none behind.
    """

    def __init__(
        self, environments: Mapping[str, Mapping[str, str]], *, module: str = "helios_cli.farm.worker"
    ) -> None:
        self._environments, self._module = environments, module
        self._selector = selectors.DefaultSelector()
        self._children: dict[str, _Child] = {}
        for name in environments:
            self._start(name)

    @property
    def names(self) -> Sequence[str]:
        return list(self._environments)

    def sees(self, name: str, path: Path) -> bool:
        return True

    def send(self, name: str, message: Message) -> None:
        stdin = self._children[name].process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `receive` reports the end of the process
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()

    def receive(self, timeout: float) -> list[tuple[str, Message]]:
        messages: list[tuple[str, Message]] = []
        for key, _ in self._selector.select(timeout):
            name = key.data
            messages += [(name, message) for message in self._read(name)]
        return messages

    def renew(self, name: str) -> None:
        self.end(name)
        self._start(name)

    def end(self, name: str) -> None:
        self._end(self._children.pop(name))

    def close(self) -> None:
        children, self._children = list(self._children.values()), {}
        for child in children:
            child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
            self._end(child)
        self._selector.close()

    def _start(self, name: str) -> None:
        is_shown = os.environ.get("HELIOS_DEBUG", "") not in ("", "0")
        process = subprocess.Popen(
            [*command_of(self._module), str(len(self._environments))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if is_shown else subprocess.DEVNULL,
            env={**os.environ, **self._environments[name]},
            start_new_session=True,
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._children[name] = _Child(process)
        self._selector.register(process.stdout, selectors.EVENT_READ, name)

    def _read(self, name: str) -> list[Message]:
        child = self._children[name]
        stdout = child.process.stdout
        assert stdout is not None
        data = os.read(stdout.fileno(), READ_BYTES)
        *lines, child.rest = (child.rest + data).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not data:
            self._selector.unregister(stdout)
            messages.append({"lost": _reason(child)})
        return messages

    def _end(self, child: _Child) -> None:
        """Kill the worker and what it has started, and close its files."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()
        assert child.process.stdin is not None and child.process.stdout is not None
        with contextlib.suppress(KeyError, ValueError):  # it is no longer registered
            self._selector.unregister(child.process.stdout)
        child.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.process.stdin.close()


def _reason(child: _Child) -> str:
    """Say how a worker ended that has closed its output."""
    try:
        code = child.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), perhaps because memory ran out"
    if code < 0:
        return f"it was stopped by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"
