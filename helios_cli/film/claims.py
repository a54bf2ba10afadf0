"""Claims: which process renders which part of a film, for processes that share a folder and nothing else.

A claim is a file `<name>.<number>` with its owner in it. It appears whole and under the next free number, which the
file system gives to one process only. The owner holds the file's lock, which the kernel releases however the process
ends, and changes the file's time every BEAT_SECONDS. Another process takes a claim over, under the next number, when

- it is on the same machine and gets the lock: the owner is dead; or
- it has seen the file's time unchanged for EXPIRY_SECONDS. Clocks are not compared.

Two owners, after a process was suspended for long, do no harm: both make the same chunks under the same names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from helios_cli.errors import MachineError
from helios_cli.files import link_once
from helios_cli.film.disk import disk_errors

BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 120.0
"""Longer than network file systems keep a file's time in their caches (a minute)."""

ALONE = "alone"
"""The claim of a process that shares the film with no other."""


@dataclass(frozen=True)
class Owner:
    """A process: `machine` differs wherever locks are not seen."""

    host: str
    pid: int
    machine: str
    started: str

    @classmethod
    def here(cls) -> Owner:
        started = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), os.getpid(), _machine(), started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Claims:
    """The claims in `folder`, for the process `me`.

    Args:
        clock: returns seconds.
        expiry: seconds without a change of its file after which a claim of another machine counts as dead.
    """

    def __init__(
        self,
        folder: Path,
        me: Owner | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        expiry: float = EXPIRY_SECONDS,
    ) -> None:
        self._folder, self._me, self._clock, self._expiry = folder, me or Owner.here(), clock, expiry
        self._held: dict[str, tuple[Path, int]] = {}  # the file, and its descriptor with the lock
        self._seen: dict[Path, tuple[int, float]] = {}  # a file's time, and since when it is that

    def take(self, name: str) -> bool:
        """Claim `name`, unless a living process has it. Returns whether it is ours."""
        if name in self._held:
            return True
        number, path = self._last(name)
        if path is not None and not self._is_dead(path):
            return False
        return self._create(name, number + 1)

    def owner(self, name: str) -> Owner | None:
        """Return the process that claims `name`, or None."""
        _, path = self._last(name)
        return None if path is None else _owner(path)

    def require_alone(self, output: str) -> None:
        """Claim the film `output` for this process alone. MachineError if another process has done so."""
        if not self.take(ALONE):
            raise MachineError(
                f"{output} is being rendered by {self.owner(ALONE) or 'another process'}, which does not share it",
                hint="wait for it, or give both commands --share",
            )

    def beat(self) -> None:
        """Show that this process lives. Call it every BEAT_SECONDS."""
        for _, descriptor in list(self._held.values()):
            with contextlib.suppress(OSError):  # a file system that is away for a while is no reason to stop
                os.utime(descriptor)

    def release(self, name: str) -> None:
        """Give a claim back, so that others may take it at once."""
        if name in self._held:
            path, descriptor = self._held.pop(name)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)

    def release_all(self) -> None:
        for name in list(self._held):
            self.release(name)

    def _last(self, name: str) -> tuple[int, Path | None]:
        """Return the highest number of a claim of `name`, 0 if there is none, and its file."""
        numbers = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.listdir(self._folder):
                stem, _, number = entry.rpartition(".")
                if stem == name and number.isdigit():
                    numbers.append(int(number))
        last = max(numbers, default=0)
        return last, self._folder / f"{name}.{last}" if last else None

    def _create(self, name: str, number: int) -> bool:
        path = self._folder / f"{name}.{number}"
        new = self._folder / f".new-{secrets.token_hex(5)}"
        with disk_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                with contextlib.suppress(OSError):  # a file system without locks: the claim's time has to do
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(descriptor, json.dumps(vars(self._me)).encode())
                is_ours = link_once(new, path)
            finally:
                new.unlink(missing_ok=True)
        if is_ours:
            self._held[name] = path, descriptor
        else:
            os.close(descriptor)
        return is_ours

    def _is_dead(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # it was released in between: the next try finds it gone
            return False
        try:
            changed, now = os.fstat(descriptor).st_mtime_ns, self._clock()
            owner = _owner(path)
            if owner is not None and owner.machine == self._me.machine:
                with contextlib.suppress(OSError):  # the lock is held, or there are no locks here
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
        finally:
            os.close(descriptor)
        before, since = self._seen.get(path, (changed, now))
        self._seen[path] = (changed, since if before == changed else now)
        return before == changed and now - since >= self._expiry


def _owner(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


@cache
def _machine() -> str:
    """Return what only this machine has since it was started; its name where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
