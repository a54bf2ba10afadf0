"""Child processes that run our modules: messages go both ways, as lines of JSON on their standard input and output.

Measurements and trials are such processes (`ask`), and so are the workers of a farm and the other ranks of a film.
Whatever a child does to memory, thread pools and the device ends with it. After an illegal address a GPU no longer
serves the process that caused it, so code that has never run on a chip is tried in a process that can be lost.
Importing this does not import torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from helios_cli import machine
from helios_cli.errors import HeliosError, MachineError

# Like `python -P -m`: the current folder, which may contain a user's random.py or torch.py, is not searched. The
# folders of our own packages come last, in case they are not installed.
_START = (
    "import runpy, sys\n"
    "module, folders = sys.argv.pop(1), sys.argv.pop(1)\n"
    "sys.path += folders.split('\\n')\n"
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_PACKAGES = ("helios_cli", "helios_kernels")

NOTE_LINES = 40
"""The lines kept of the stderr of a failed process."""

BLOCK_BYTES = 1 << 16
"""Bytes that are read at a time: as much as a pipe holds."""

END_SECONDS = 10.0
"""The longest wait for a process that was killed, which a driver may hold up."""

_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b.*$", re.MULTILINE)
"""The line of a traceback that names the exception. Compilers and CUDA print many more after it."""

Message = dict[str, Any]


class ChildError(HeliosError):
    """A child process failed. `answers` are those that it gave before."""

    def __init__(self, message: str, *, hint: str, answers: list[Message]) -> None:
        super().__init__(message, hint=hint)
        self.answers = answers


class ChildStoppedError(ChildError, MachineError):
    """A child process was killed, or took too long."""


def ask(
    module: str, question: Message, *, environment: Mapping[str, str] | None = None, timeout: float | None = None
) -> list[Message]:
    """Ask a child process, whose module calls `serve`, and return its answers. `module` is one of ours, in full.

    Raises the HeliosError that it raised; ChildStoppedError if it was killed or took more than `timeout` seconds,
    ChildError if it failed in another way. The error has the last lines of its stderr as a note.
    """
    end = None if timeout is None else time.monotonic() + timeout

    def left() -> float | None:
        return None if end is None else max(0.0, end - time.monotonic())

    answers: list[Message] = []
    with machine.temporary_folder() as folder, Inbox() as inbox:
        variables = {"TMPDIR": folder, **(environment or {})}  # a child that is killed leaves its files
        child = Child(module, module, inbox=inbox, environment=variables, log=Path(folder, "stderr"))
        try:
            child.send(question)
            with contextlib.suppress(Empty):
                while (answer := inbox.get(left())[1]) is not None:
                    if "failed" in answer:
                        raise HeliosError.from_dict(answer["failed"])
                    answers.append(answer)
            code = child.code(left())
        finally:
            child.end()
        if code == 0:
            return answers
        if code is None:
            how, hint = f"took more than {timeout:.0f} s", "use a smaller film, or allow more time"
        elif code == -signal.SIGALRM:  # `serve`
            how, hint = "took too long for one step", "set HELIOS_DEBUG=1 to see its output"
        elif code < 0:
            how, hint = child.how_it_ended(code), "if memory ran out, use a smaller size"
        else:
            how, hint = child.how_it_ended(code), "set HELIOS_DEBUG=1 to see its output"
        kind = ChildStoppedError if code is None or code < 0 else ChildError
        raise child.noted(kind(f"the process {module} {how}", hint=hint, answers=answers))


class Child:
    """A child process that runs one of our modules, whose full name is given; the module calls `serve_lines`.

    Its messages come to `inbox`. It leads a process group: Ctrl-C on the terminal is for this process alone, and
    whatever the child has started ends with it.

    Args:
        name: what it is called here.
        log: the file for its stderr; it is shown with HELIOS_DEBUG=1.
    """

    def __init__(
        self,
        name: str,
        module: str,
        *arguments: str,
        inbox: Inbox,
        environment: Mapping[str, str] | None = None,
        log: Path = Path(os.devnull),
    ) -> None:
        self.name, self._log = name, log
        is_shown = os.environ.get("HELIOS_DEBUG", "") not in ("", "0")
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, module, _folders(), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if is_shown else stderr,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._rest = b""  # the beginning of a line
        self._inbox = inbox
        inbox.register(self._stdout, selectors.EVENT_READ, self)

    def send(self, message: Message) -> None:
        """Send a message. The end of a child that is gone is seen by its messages."""
        with contextlib.suppress(OSError):
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()

    def code(self, seconds: float | None) -> int | None:
        """Wait for its end, at most so many seconds, and return its exit code; None if it has not ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        """Kill it, with what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
            os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, wait for that, and close the pipes. Nothing more comes from it."""
        self.kill()
        self.code(END_SECONDS)
        with contextlib.suppress(KeyError):  # its messages were read to their end
            self._inbox.unregister(self._stdout)
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # what was not sent is lost
                pipe.close()

    def how_it_ended(self, code: int) -> str:
        """Say how it ended without success: by a signal, or with the error that its stderr names last."""
        if code < 0:
            return f"was stopped by {signal.Signals(-code).name}"
        output = self._output()
        raised = [match[0] for match in _RAISED.finditer(output)] or output.splitlines() or [f"exit code {code}"]
        return f"failed: {raised[-1]}"

    def noted(self, error: HeliosError) -> HeliosError:
        """Return the error with the last lines of its stderr as a note."""
        if lines := self._output().splitlines()[-NOTE_LINES:]:
            error.add_note("\n".join(lines))
        return error

    def _output(self) -> str:
        return self._log.read_text(errors="replace").strip()

    def read(self) -> list[Message | None]:
        """Return the messages that are there, for `Inbox`. A line that was cut, as the child was killed, is none."""
        block = os.read(self._stdout.fileno(), BLOCK_BYTES)
        *lines, self._rest = (self._rest + block).split(b"\n")
        messages: list[Message | None] = [json.loads(line) for line in lines]
        if not block:
            self._inbox.unregister(self._stdout)
            messages.append(None)
        return messages


Received = tuple[Child, Message | None]
"""A message with its child; None when that has closed its output."""


class Inbox(selectors.DefaultSelector):
    """The messages of any number of children."""

    def __init__(self) -> None:
        super().__init__()
        self._received: deque[Received] = deque()

    def receive(self, timeout: float | None = None) -> list[Received]:
        """Return what has come, after at most `timeout` seconds."""
        return [(key.data, message) for key, _ in self.select(timeout) for message in key.data.read()]

    def get(self, timeout: float | None = None) -> Received:
        """Return what comes next. Raises Empty after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._received:
            left = None if end is None else max(0.0, end - time.monotonic())
            self._received += self.receive(left)
            if left == 0.0 and not self._received:
                raise Empty
        return self._received.popleft()


def _folders() -> str:
    """Return the folders of our packages, a line each."""
    specs = [importlib.util.find_spec(name) for name in _PACKAGES]
    return "\n".join(str(Path(spec.origin).absolute().parents[1]) for spec in specs if spec and spec.origin)


def serve(answers: Callable[[Any], Iterable[Message]], *, seconds: int = 0) -> None:
    """Answer the question of `ask`, in its child process.

    With `seconds`, or a question with "seconds_each", the process is killed when an answer takes longer.
    """

    def talk(messages: Iterator[Message]) -> Iterator[Message]:
        question = next(messages)
        each = question.pop("seconds_each", seconds)
        signal.alarm(each)  # has no Python handler, which could not run while a call of the driver hangs
        for answer in answers(question):
            yield answer
            signal.alarm(each)

    serve_lines(talk)


def end_at_once() -> None:
    """Kill this process, a child, with what it has started."""
    os.killpg(0, signal.SIGKILL)


def serve_lines(
    talk: Callable[[Iterator[Message]], Iterable[Message]], *, at_loss: Callable[[], object] = end_at_once
) -> None:
    """Talk with the parent process: `talk` takes its messages, and yields those for it. A HeliosError is the last one.

    What else this process prints goes to stderr. `at_loss` is called in a thread when the parent is gone, however it
    ended and whatever this process is doing.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    messages: SimpleQueue[Message | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(messages, at_loss), name="messages", daemon=True).start()
    try:
        for reply in talk(iter(messages.get, None)):
            replies.write(json.dumps(reply) + "\n")
    except HeliosError as error:
        replies.write(json.dumps({"failed": error.to_dict()}) + "\n")


def _listen(messages: SimpleQueue[Message | None], at_loss: Callable[[], object]) -> None:
    """Read standard input. Not through a file object, whose lock Python would ask for when this process exits."""
    rest = b""
    while block := os.read(0, BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            messages.put(json.loads(line))
    messages.put(None)
    at_loss()
