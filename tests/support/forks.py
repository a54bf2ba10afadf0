"""Python processes that begin as forks of one that has imported torch and helios, which takes three seconds.

`install` puts `Popen` in the place of subprocess.Popen. The processes that most tests start, `python -m helios_cli` and
the children of helios itself (helios_cli.child), are forked then. All else starts as ever: other programs, other Python
code, and what has an environment that an import would have read (`can_fork`). A test of the start itself, such as which
modules a command imports, runs `python -c`.

A server forks for one process of pytest, and for all that this has started, and ends with it. In its folder are its
socket and a file for each fork: `children` reads them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PYTHON = sys.executable
"""The Python of this process, whatever a test puts in its place."""

READ_AT_START = (
    *("LD_", "PYTHON", "LC_", "LANG", "TORCH_", "PYTORCH_", "ATEN_", "ONEDNN_", "DNNL_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_"),
)
"""The beginnings of variables that Python, torch and its libraries read when they are loaded.

helios reads none when it is imported. What is not imported here reads its own: Triton, huggingface_hub."""

PARAMETERS = list(inspect.signature(subprocess.Popen._execute_child).parameters)[1:]

USUAL = {"preexec_fn": None, "pass_fds": (), "process_group": -1, "uid": None, "gid": None, "gids": None, "umask": -1}
"""The arguments with which a process is like the one that starts it."""

MESSAGE_BYTES = 1 << 17
"""The longest request: arguments and environment."""


ENVIRONMENT: dict[str, str] = {}
"""The variables that are set when tests begin, which the server has, too."""

folder: Path | None = None
"""The folder of the server that this process asks; forks ask the one that has forked them."""


def install() -> None:
    if sys.platform == "linux":  # elsewhere libraries do not survive a fork
        ENVIRONMENT.update(os.environ)
        subprocess.Popen = Popen


def running() -> Path:
    """Return the folder of the server, which is started for the first fork and ends when its stdin is closed."""
    global folder
    if folder is None:
        new = Path(tempfile.mkdtemp(prefix="helios-forks-", dir="/tmp"))  # the path of a socket is short
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        running.server = subprocess.Popen(
            [PYTHON, "-P", __file__, str(new), *sys.path], env=ENVIRONMENT, cwd="/", start_new_session=True, **pipes
        )
        assert running.server.stdout.readline(), "the server of forks ended"
        folder = new
    return folder


class Popen(subprocess.Popen):
    """A process that is a fork if it can be.

    A fork's parent is its keeper, a process that waits for the end of the fork and sends its status.
    """

    _keeper: socket.socket | None = None

    def _execute_child(self, *values: Any) -> None:
        how = dict(zip(PARAMETERS, values, strict=True))
        if not can_fork(how):
            super()._execute_child(*values)
            return
        sys.audit("subprocess.Popen", how["args"][0], how["args"], how["cwd"], how["env"])
        pipes = [how[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        streams = [pipes[0], pipes[3], pipes[5]]
        request = {
            "arguments": list(map(os.fsdecode, how["args"][1:])),
            "environment": dict(how["env"] or os.environ),
            "folder": os.fsdecode(how["cwd"] or os.getcwd()),
            "new_session": how["start_new_session"],
            "parent": os.getpid(),
        }
        self._keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._keeper.connect(str(running() / "socket"))
        own = [number if stream == -1 else stream for number, stream in enumerate(streams)]
        socket.send_fds(self._keeper, [json.dumps(request).encode()], own)
        self.pid = int(self._keeper.recv(MESSAGE_BYTES))
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._keeper is None:
            return super()._try_wait(wait_flags)
        try:
            status = self._keeper.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT if wait_flags & os.WNOHANG else 0)
        except BlockingIOError:
            return 0, 0
        self._keeper.close()
        return self.pid, int(status)

    def _internal_poll(self, **how: Any) -> int | None:
        if self._keeper is None:
            return super()._internal_poll(**how)
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def can_fork(how: Mapping[str, Any]) -> bool:
    """Return whether a fork would be the process that these arguments of `Popen._execute_child` describe."""
    command = how["args"]
    if not isinstance(command, list) or command[:1] != [PYTHON] or how["shell"]:
        return False
    start = getattr(sys.modules.get("helios_cli.child"), "_START", None)
    if command[1:3] != ["-m", "helios_cli"] and command[1:4] != ["-P", "-c", start]:
        return False
    if any(how[name] != usual for name, usual in USUAL.items()):
        return False
    environment = how["env"] or os.environ
    read = [name for name in {*environment, *ENVIRONMENT} if name.startswith(READ_AT_START)]
    return all(environment.get(name) == ENVIRONMENT.get(name) for name in read)


def children(pid: int) -> dict[int, list[str]]:
    """Return the child processes of a process that have not ended, forks that it asked for included: pid -> command."""
    found = {}
    with contextlib.suppress(OSError):  # it has ended, or they have
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().split("\0")
    for file in running().glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fork = json.loads(file.read_text())
            if fork["parent"] == pid:
                found[int(file.name)] = fork["arguments"]
    return dict(sorted(found.items()))


def serve() -> list[str]:
    """Fork for each connection, and return in each fork with its arguments. The server ends with its stdin."""
    for module in ("yaml", "safetensors.torch", "tokenizers", "rich.table", "rich.progress"):  # imported late
        importlib.import_module(module)
    own = sys.path[:]
    sys.path[:0] = sys.argv[2:]  # where the tests find helios
    for module in pkgutil.walk_packages(importlib.import_module("helios_cli").__path__, "helios_cli."):
        if not module.name.endswith(".__main__"):
            with contextlib.suppress(ImportError):  # it needs an extra that is not there
                importlib.import_module(module.name)
    sys.path[:] = own
    gc.freeze()  # what is there stays
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, selectors.DefaultSelector() as selector:
        listener.bind(str(folder / "socket"))
        listener.listen()
        print(flush=True)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a keeper
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection = listener.accept()[0]
            if not os.fork():
                break
            connection.close()
        else:
            shutil.rmtree(folder)
            sys.exit()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return keep(connection)


def keep(connection: socket.socket) -> list[str]:
    """Fork, and wait for the end of the fork. Return in the fork, which says that it is there, with its arguments."""
    message, streams, *_ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
    if pid := os.fork():
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(OSError):  # nobody asks any more
            Path(folder, str(pid)).unlink()
            connection.send(str(status).encode())
        os._exit(0)
    request = json.loads(message)
    if request["new_session"]:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    open_streams()
    pid = str(os.getpid())
    Path(folder, pid).write_bytes(message)
    connection.send(pid.encode())
    connection.close()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    return request["arguments"]


def open_streams() -> None:
    """Open the standard streams as Python does when it starts."""
    for name, mode, fd in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        errors = getattr(sys, name).errors
        buffering = 1 if os.isatty(fd) or fd == 2 else -1
        stream = open(fd, mode, buffering, errors=errors, closefd=False)  # noqa: SIM115 (as long as the process)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


if __name__ == "__main__":
    install()
    folder = Path(sys.argv[1])
    option, *arguments = serve()
    if option == "-m":
        sys.argv = arguments
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        _, code, *arguments = arguments
        sys.argv = ["-c", *arguments]
        sys.modules.pop(arguments[0], None)  # it runs as a program, as if it had not been imported
        exec(code, {"__name__": "__main__"})
