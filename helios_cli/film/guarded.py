"""Starts programs that may not outlive this process, away from the terminal, and notices when they do nothing.

Ctrl-C reaches the engine alone, which then decides. After SIGKILL a process cannot end its children itself, so a shell
waits next to each of them. (PR_SET_PDEATHSIG would need code between fork and exec, and goes by threads, not
processes.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any

LOOK_SECONDS = 0.5
"""Time between two looks at a program, and between two reports of how far it is."""

MAX_LINE = 1000
"""Bytes of a message that are read at a time: a damaged file can make ffmpeg print a lot."""


class Guarded:
    """A running program in a process group of its own. A thread reads its messages, of which the last ones are kept.

    `popen` are arguments of `subprocess.Popen`.
    """

    def __init__(self, command: Sequence[str], *, tail: int, **popen: Any) -> None:
        self._tail: deque[str] = deque(maxlen=tail)
        # Ctrl-C waits, so that a child never gets one, not even before it leaves the terminal's group.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._popen = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **popen)
            self._guard = _guard_of(self._popen.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._messages = threading.Thread(
            target=self._read, args=[self._popen.stderr], name="messages of a program", daemon=True
        )
        self._messages.start()

    def _read(self, stderr: IO[bytes]) -> None:
        with stderr:
            while line := stderr.readline(MAX_LINE):
                self._hear(line.decode(errors="replace").strip("\r\n"))

    def _hear(self, line: str) -> None:
        """Take a line of its messages."""
        self._tail.append(line.strip())

    def _kill_group(self) -> None:
        """End the program at once, and all that it started in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself just now
            os.killpg(self._popen.pid, signal.SIGKILL)

    def _release(self) -> None:
        """Let the guard go: the program has ended. May be called twice."""
        guard, self._guard = self._guard, None
        if guard:
            guard.communicate(b"\n")


def _guard_of(pid: int) -> subprocess.Popen[bytes] | None:
    """Start a shell that ends the process group `pid` if this process ends before it writes to the shell."""
    command = ["/bin/sh", "-c", f"read -r end || kill -s KILL -- -{pid}"]
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with contextlib.suppress(OSError):  # there is no shell
        return subprocess.Popen(command, stdin=pipe, stdout=null, stderr=null, start_new_session=True, cwd="/")
    return None


class Stall:
    """Notices that nothing has happened for so many `seconds`: neither a state has changed, nor the processor time that
    `computed` returns, which is read only where nothing else has changed. None is never."""

    def __init__(self, seconds: float | None, computed: Callable[[], str]) -> None:
        self._seconds, self._computed = seconds, computed
        self._since, self._time = time.monotonic(), ""
        self._state: object = None

    def has_come(self, state: object) -> bool:
        now = time.monotonic()
        if state != self._state:
            self._since, self._state = now, state
        elif self._seconds is not None and now - self._since >= min(self._seconds, 2 * LOOK_SECONDS):
            if (time_now := self._computed()) != self._time:
                self._since, self._time = now, time_now
            return now - self._since >= self._seconds
        return False


def processor_time(pid: int) -> str:
    """Return a text that changes while the process, or a child that it waited for, computes."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return " ".join(file.read().rpartition(")")[2].split()[11:15])
    except OSError:  # not Linux
        return ""


def processor_time_of_group(group: int) -> str:
    """Return a text that changes while a process of the group computes; "" where the system does not say."""
    try:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return ""
    return " ".join(processor_time(pid) for pid in pids if _group_of(pid) == group)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None
