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
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from helios_cli.errors import MachineError
from helios_cli.files import NEW, link_once
from helios_cli.film.disk import disk_errors

BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 120.0
"""Longer than network file systems keep a file's time in their caches (a minute)."""

ALONE = "alone"
"""The claim of a process that shares with no other: it excludes all other claims."""


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


@dataclass(frozen=True)
class Rival:
    """Another process with a claim that excludes ours. Whether it is alive may be known only after EXPIRY_SECONDS."""

    owner: Owner | None
    is_alive: bool

    def __str__(self) -> str:
        return str(self.owner or "another process")


class Claims:
    """The claims in `folder`, for the process `me`. Threads may share it.

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
        self._lock = threading.Lock()  # on `_held`: descriptors that are closed may be other files a moment later
        self._held: dict[str, tuple[Path, int]] = {}  # the file, and its descriptor with the lock
        self._seen: dict[Path, tuple[int, float]] = {}  # a file's time, and since when it is that

    def take(self, name: str) -> bool:
        """Claim `name`, unless a living process has it. Returns whether it is ours."""
        if name in self._held:
            return True
        number, path = self._last(name)
        if path is not None and self._is_alive(path) is not False:
            return False
        return self._create(name, number + 1)

    def require_alone(self, output: str) -> Iterator[str]:
        """Claim the film `output` for this process alone. MachineError if another process renders it.

        Waits where only time can tell whether a process of another machine is dead, and yields a notice that says so.
        """
        yield from self._require(self._take_alone, output)

    def require_shared(self, output: str) -> Iterator[str]:
        """Raise MachineError if another process has the film `output` for itself alone. Waits like `require_alone`."""
        yield from self._require(lambda: self.rival(ALONE), output)

    def _require(self, find_rival: Callable[[], Rival | None], output: str) -> Iterator[str]:
        """Wait until there is no rival. MachineError for one that is alive."""
        waits = False
        while rival := find_rival():
            if rival.is_alive:
                raise MachineError(
                    f"{output} is being rendered by {rival}",
                    hint="wait for it, or give both commands --share to work together",
                )
            if not waits:
                limit = f"once it has shown no sign of life for {self._expiry:g} s, it counts as dead"
                yield f"{output} was being rendered by {rival}; waiting: {limit}"
                waits = True
            time.sleep(1)

    def _take_alone(self) -> Rival | None:
        """Claim everything for this process alone. Returns the process that this would exclude, if there is one."""
        if not self.take(ALONE):
            return self.rival(ALONE) or Rival(None, is_alive=False)
        for name in {name for name, _ in self._listed()}:
            if rival := self.rival(name):
                self.release(ALONE)
                return rival
        return None

    def rival(self, name: str) -> Rival | None:
        """Return the other process that claims `name`, unless it is dead."""
        _, path = self._last(name)
        if path is None or name in self._held or (is_alive := self._is_alive(path)) is False:
            return None
        return Rival(_owner(path), bool(is_alive))

    def beat(self) -> None:
        """Show that this process lives. Call it every BEAT_SECONDS."""
        with self._lock:
            for _, descriptor in self._held.values():
                with contextlib.suppress(OSError):  # a file system that is away for a while is no reason to stop
                    os.utime(descriptor)

    def release(self, name: str) -> None:
        """Give a claim back, so that others may take it at once."""
        with self._lock:
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
        last = max((number for other, number in self._listed() if other == name), default=0)
        return last, self._folder / f"{name}.{last}" if last else None

    def _listed(self) -> Iterator[tuple[str, int]]:
        """Yield name and number of each claim."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.listdir(self._folder):
                name, _, number = entry.rpartition(".")
                if name and number.isdigit():
                    yield name, int(number)

    def _create(self, name: str, number: int) -> bool:
        path = self._folder / f"{name}.{number}"
        new = self._folder / f"{NEW}{secrets.token_hex(5)}"
        with disk_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                with contextlib.suppress(OSError):  # a file system without locks: the claim's time has to do
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(descriptor, json.dumps(vars(self._me)).encode())
                is_ours = link_once(new, path)
            except BaseException:
                os.close(descriptor)
                raise
            finally:
                new.unlink(missing_ok=True)
        if is_ours:
            with self._lock:
                self._held[name] = path, descriptor
        else:
            os.close(descriptor)
        return is_ours

    def _is_alive(self, path: Path) -> bool | None:
        """Return whether the owner of the claim at `path` is alive, None while that is not known."""
        owner = _owner(path)
        if owner is not None and owner.machine == self._me.machine and (is_locked := _is_locked(path)) is not None:
            return is_locked
        try:
            changed, now = path.stat().st_mtime_ns, self._clock()
        except FileNotFoundError:  # it was released in between: the next try finds it gone
            return None
        before, since = self._seen.get(path, (changed, now))
        self._seen[path] = (changed, since if before == changed else now)
        if before != changed:
            return True
        return False if now - since >= self._expiry else None


def _is_locked(path: Path) -> bool | None:
    """Return whether a process of this machine holds the lock of the file, None if that cannot be found out."""
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks for writers only
        except PermissionError:  # another user's
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return True
    except OSError:  # it is gone, not ours to read, or there are no locks here
        return None


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
