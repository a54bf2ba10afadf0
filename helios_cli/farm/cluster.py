"""Workers in a Ray cluster: --cluster. Imports neither torch nor Ray, which `relay` uses in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType

from helios_cli import __version__
from helios_cli.child import NOTE_LINES
from helios_cli.cost.farm import gpus_per_worker
from helios_cli.errors import HeliosError, InputError, MachineError
from helios_cli.farm.pool import Message
from helios_cli.farm.relay import CLOSE_SECONDS, SEES_SECONDS, Wish, digest_of
from helios_cli.recipe.options import RenderOptions

CONNECT_SECONDS = 150
"""Seconds within which a cluster answers, or a private Ray has started. Ray itself gives up after 60 in most cases."""

INSTALL = "pip install 'helios-render[ray]'"

LONGEST_FOLDER = 40
"""Characters of a temporary folder in which Ray has room for its sockets, whose paths may have 107."""

FORWARDED = ("OMP_NUM_THREADS", "HELIOS_KERNELS", "HELIOS_DEBUG")
"""Variables of the driver that workers get too: they decide how films are computed."""

_ADDRESS = re.compile(r"auto|local|(ray://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):\d{1,5}")


def check_address(address: str) -> str:
    """Return --cluster if it can be one. InputError if not."""
    if not _ADDRESS.fullmatch(address):
        raise InputError(
            f"--cluster {address}: not an address",
            hint="write auto, local, HOST:PORT (of `ray start --head`), or ray://HOST:PORT",
        )
    return address


def open_cluster(options: RenderOptions, *, most: int) -> ClusterPool:
    """Start at most `most` workers in the cluster that the options ask for. Raises HeliosError."""
    assert options.cluster is not None, "only --cluster leads here"
    workers = options.workers if isinstance(options.workers, int) else None
    return ClusterPool(Wish(options.cluster, workers, most, gpus_per_worker(options), options.device))


class ClusterPool:
    """Workers as Ray actors, in the cluster and as many as a driver wishes for.

    One that finds no free GPU waits for it, and says so in messages. Raises InputError for an address that is none,
    MachineError where Ray is not installed, no cluster answers, or it is of other versions.
    """

    def __init__(self, wish: Wish) -> None:
        self.address = check_address(wish.address)
        if importlib.util.find_spec("ray") is None:
            raise MachineError(f"--cluster {wish.address} needs Ray, which is not installed", hint=INSTALL)
        forwarded = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        self._folder = _folder()
        self._log = self._folder / "log"
        self.names: list[str] = []
        self._messages: deque[tuple[str, Message]] = deque()
        self._sees: dict[tuple[str, Path], bool] = {}
        self._answer: bool | None = None
        self._pipe, self._process = self._start(replace(wish, environment=forwarded))
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def send(self, name: str, message: Message) -> None:
        """Give a worker a message. MachineError if the cluster is lost."""
        self._tell("send", name, message)

    def renew(self, name: str) -> None:
        """Kill what is left of a worker, and start it anew on any node that has room. Its old messages are dropped."""
        self._forget(name)
        self._tell("renew", name)

    def end(self, name: str) -> None:
        """Kill what is left of a worker, and give back what it had of the cluster. Its messages are dropped."""
        self._forget(name)
        self._tell("end", name)

    def receive(self, timeout: float) -> list[tuple[str, Message]]:
        """Return the messages that came, after at most `timeout` seconds. MachineError if the cluster is lost."""
        if not self._messages:
            self._read(timeout)
        while self._pipe.poll(0):
            self._read(0)
        messages = list(self._messages)
        self._messages.clear()
        return messages

    def sees(self, name: str, path: Path) -> bool:
        """Return whether a worker sees what is at `path` here, which it proves: a file by its content, a folder by that
        of a new file in it."""
        if self.address == "local":
            return True
        if (name, path) not in self._sees:
            with _file_of(path) as file:
                self._answer = None
                self._tell("sees", name, str(file), digest_of(file))
                while self._answer is None:
                    self._read(SEES_SECONDS)
            self._sees[name, path] = self._answer
        return self._sees[name, path]

    def _forget(self, name: str) -> None:
        self._messages = deque((other, message) for other, message in self._messages if other != name)
        self._sees = {key: sees for key, sees in self._sees.items() if key[0] != name}

    def _start(self, wish: Wish) -> tuple[Connection, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _RUN, str(theirs.fileno()), str(self._folder), json.dumps(asdict(wish))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,  # Ray's workers look for modules where their driver started
                env=_environment(wish.address),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C reaches the driver, which closes the pool
            )
        return Connection(ours.detach()), process

    def _connect(self) -> None:
        """Wait until the cluster has answered, or raise why it does not."""
        end = time.monotonic() + CONNECT_SECONDS
        while not self.names:
            left = end - time.monotonic()
            if left <= 0:
                error = MachineError(
                    f"the Ray cluster at {self.address} did not answer within {CONNECT_SECONDS} s",
                    hint="check that it runs: ray status --address HOST:PORT",
                )
                raise self._noted(error)
            self._read(left)

    def _tell(self, *command: object) -> None:
        try:
            self._pipe.send(command)
        except OSError as error:
            raise self._lost() from error

    def _read(self, timeout: float) -> None:
        """Read one message if there is one within `timeout` seconds."""
        try:
            if not self._pipe.poll(timeout):
                return
            received = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        match received:
            case ("names", names):
                self.names = names
            case ("message", name, message):
                if "hello" in message:
                    check_versions(message["hello"])
                self._messages.append((name, message))
            case ("sees", answer):
                self._answer = answer
            case ("error", error):
                raise self._noted(HeliosError.from_dict(error))

    def _lost(self) -> HeliosError:
        """The error of a relay that ended by itself: Ray ends it when the head is lost."""
        return self._noted(
            MachineError(
                f"the Ray cluster at {self.address} was lost: {_why(self._log)}",
                hint="run the same command again, once the cluster is back: finished chunks are kept",
            )
        )

    def _noted(self, error: HeliosError) -> HeliosError:
        error.add_note("\n".join(_lines(self._log)[-NOTE_LINES:]))
        return error

    def close(self) -> None:
        """End all workers, and the private Ray of `local`. No process is left behind."""
        self._pipe.close()  # `relay.listen` ends the process
        try:
            self._process.wait(CLOSE_SECONDS + 5)
        except BaseException as error:  # it hangs, or a second Ctrl-C does not wait for it
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


_RUN = "from helios_cli.farm.relay import main; main()"
"""Ray's workers import the module of the actors by name: it must not be `__main__`."""


def check_versions(hello: Mapping) -> None:
    """Raise MachineError if a worker's helios has another version than this one."""
    theirs = hello["versions"].get("helios")
    if theirs != __version__:
        raise MachineError(
            f"node {hello['host']} has helios {theirs}, this machine has {__version__}; they must be the same",
            hint=f"install helios {__version__} on the nodes, in the environment in which `ray start` runs there",
        )


@contextlib.contextmanager
def _file_of(path: Path) -> Iterator[Path]:
    """A file that proves who sees `path`: itself, or a new one in the folder, of random bytes."""
    if not path.is_dir():
        yield path
        return
    token = path / f".seen-{secrets.token_hex(8)}"
    token.write_bytes(secrets.token_bytes(32))
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _environment(address: str) -> Mapping[str, str]:
    """The variables of the relay. A private Ray listens on 127.0.0.1 alone, and its token is in no file."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "30")  # until a lost head ends the relay
    environment.setdefault("RAY_NUM_REDIS_GET_RETRIES", "5")  # Ray's 20 take so many seconds with a wrong token, too
    if address == "local":
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            environment.pop(name, None)
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's name for: no other machines, loopback only
    return MappingProxyType(environment)


def _folder() -> Path:
    place = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="helios-ray-", dir=place if len(place) <= LONGEST_FOLDER else "/tmp"))


def _lines(log: Path) -> list[str]:
    """The lines that Ray printed, without colours and dumps of its state."""
    try:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip() and "[state-dump]" not in line]


def _why(log: Path) -> str:
    """Return why a relay ended by itself, from the last line that Ray printed."""
    last = next(iter(_lines(log)[-1:]), "")
    if "Failed to connect to GCS" in last:
        return "its head does not answer"
    return re.sub(r"^\[.*?\] \S+: ", "", last) or "the process of Ray ended"
