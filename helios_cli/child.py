"""Runs measurements and trials in child processes, which report their answers one by one. Does not import torch.

Whatever a child does to memory, thread pools and the device ends with it. After an illegal address a GPU no longer
serves the process that caused it, so code that has never run on a chip is tried in a process that can be lost.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from helios_cli import errors, machine
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

_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b.*$", re.MULTILINE)
"""The line of a traceback that names the exception. Compilers and CUDA print many more after it."""


class ChildError(HeliosError):
    """A child process failed. `answers` are those that it gave before."""

    def __init__(self, message: str, *, hint: str, answers: list[dict]) -> None:
        super().__init__(message, hint=hint)
        self.answers = answers


class ChildStoppedError(ChildError, MachineError):
    """A child process was killed, or took too long."""


def ask(
    module: str, question: object, *, environment: Mapping[str, str] | None = None, timeout: float | None = None
) -> list[dict]:
    """Run `python -m MODULE` with a JSON question and return its JSON answers. `module` is one of ours, in full.

    Raises the HeliosError that it raised; ChildStoppedError if it was killed or took more than `timeout` seconds,
    ChildError if it failed in another way. The error has the last lines of its stderr as a note.
    """
    is_shown = os.environ.get("HELIOS_DEBUG", "") not in ("", "0")
    with machine.temporary_folder() as folder:
        answer, log = Path(folder, "answer.jsonl"), Path(folder, "stderr")
        answer.touch()
        with log.open("wb") as stderr:
            try:
                code = subprocess.run(
                    [*command_of(module), json.dumps(question), str(answer)],
                    stdout=subprocess.DEVNULL,
                    stderr=None if is_shown else stderr,
                    env={**os.environ, **(environment or {})},
                    timeout=timeout,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        answers = _read(answer.read_bytes())
        output = log.read_text(errors="replace").strip()
    if code == 0:
        return answers
    if code is None:
        what, hint = f"took more than {timeout:.0f} s", "use a smaller film, or allow more time"
    elif code == -signal.SIGALRM:  # `serve`
        what, hint = "took too long for one step", "set HELIOS_DEBUG=1 to see its output"
    elif code < 0:
        what, hint = how_it_ended(code, output), "if memory ran out, use a smaller size"
    else:
        what, hint = how_it_ended(code, output), "set HELIOS_DEBUG=1 to see its output"
    kind = ChildStoppedError if code is None or code < 0 else ChildError
    error = kind(f"the process {module} {what}", hint=hint, answers=answers)
    error.add_note("\n".join(output.splitlines()[-NOTE_LINES:]))
    raise error


def command_of(module: str) -> list[str]:
    """Return the command that runs one of our modules, whose full name is given."""
    return [sys.executable, "-P", "-c", _START, module, _folders()]


def how_it_ended(code: int, output: str) -> str:
    """Say how a process ended that did not succeed: by a signal, or with the error that its `output` names last."""
    if code < 0:
        return f"was stopped by {signal.Signals(-code).name}"
    raised = [match[0] for match in _RAISED.finditer(output)] or output.splitlines() or [f"exit code {code}"]
    return f"failed: {raised[-1]}"


def _folders() -> str:
    """Return the folders of our packages, a line each."""
    specs = [importlib.util.find_spec(name) for name in _PACKAGES]
    return "\n".join(str(Path(spec.origin).absolute().parents[1]) for spec in specs if spec and spec.origin)


def _read(written: bytes) -> list[dict]:
    """Return the answers on whole lines, as the process may have been killed in the last one."""
    answers = [json.loads(line) for line in written.decode().split("\n")[:-1]]
    for answer in answers:
        if "error" in answer:
            raise errors.KINDS.get(answer["error"], HeliosError)(answer["message"], hint=answer["hint"])
    return answers


def serve(answers: Callable[[dict], Iterable[dict]], *, seconds: int = 0) -> None:
    """Run a child process: take the question from the command line and write each answer to a file.

    With `seconds`, or a question with "seconds_each", the process is killed when an answer takes longer.
    """
    question, file = json.loads(sys.argv[1]), Path(sys.argv[2])
    if isinstance(question, dict):
        seconds = question.pop("seconds_each", seconds)
    with file.open("a", encoding="utf-8") as out:

        def write(answer: dict) -> None:
            out.write(json.dumps(answer) + "\n")
            out.flush()

        signal.alarm(seconds)  # has no Python handler, which could not run while a call of the driver hangs
        try:
            for answer in answers(question):
                write(answer)
                signal.alarm(seconds)
        except HeliosError as error:  # `ask` raises it again, as its nearest base that is in `errors.KINDS`
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind in errors.KINDS.values())
            write({"error": kind, "message": error.message, "hint": error.hint})
