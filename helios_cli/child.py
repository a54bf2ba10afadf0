"""Measurements and trials in processes of their own, which say what they have as they go. Nothing here imports torch.

What such a process does to memory, thread pools and the device ends with it. A GPU that was led to a wrong address
answers nothing more to the process that did it, so what has never run on a chip is tried in one that can be lost.
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

# As `python -P -m` does it: the current folder, where a user's random.py or torch.py may lie, is not searched. The
# folders of our own packages come last, in case they are not installed.
_START = (
    "import runpy, sys\n"
    "module, folders = sys.argv.pop(1), sys.argv.pop(1)\n"
    "sys.path += folders.split('\\n')\n"
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
_PACKAGES = ("helios_cli", "helios_kernels")

TOLD_LINES = 40
"""Of a failed process's stderr that are kept."""

_RAISED = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b.*$", re.MULTILINE)
"""The line of a traceback that says what was raised. Compilers and CUDA let many others follow it."""


class ChildError(HeliosError):
    """Such a process did not come to its end.

    Attributes:
        answers: what it had said by then.
    """

    def __init__(self, message: str, *, hint: str, answers: list[dict]) -> None:
        super().__init__(message, hint=hint)
        self.answers = answers


class ChildStoppedError(ChildError, MachineError):
    """It was killed, or took too long."""


def ask(
    module: str, question: object, *, environment: Mapping[str, str] | None = None, timeout: float | None = None
) -> list[dict]:
    """What `python -m MODULE` answers to a question, both as JSON. `module` is one of ours, in full. Modules of the
    current folder are not taken for the ones that it imports.

    Raises the HeliosError that it raised; ChildStoppedError if it was killed or took more than `timeout` seconds,
    ChildError if it failed otherwise. The last of what it wrote is a note on that; HELIOS_DEBUG shows it all.
    """
    is_shown = os.environ.get("HELIOS_DEBUG", "") not in ("", "0")
    with machine.temporary_folder() as folder:
        answer, said = Path(folder, "answer.jsonl"), Path(folder, "stderr")
        answer.touch()
        command = [sys.executable, "-P", "-c", _START, module, _folders(), json.dumps(question), str(answer)]
        with said.open("wb") as stderr:
            try:
                code = subprocess.run(
                    command,
                    stdout=subprocess.DEVNULL,
                    stderr=None if is_shown else stderr,
                    env={**os.environ, **(environment or {})},
                    timeout=timeout,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        answers = _read(answer.read_bytes())
        told = said.read_text(errors="replace").strip()
    if code == 0:
        return answers
    if code is None:
        what, hint = f"took more than {timeout:.0f} s", "take a smaller film, or allow more time"
    elif code == -signal.SIGALRM:  # `serve`
        what, hint = "took too long over one piece of its work", "HELIOS_DEBUG=1 shows all that it says"
    elif code < 0:
        what, hint = f"was stopped by {signal.Signals(-code).name}", "if memory ran out, take a smaller size"
    else:
        raised = [match[0] for match in _RAISED.finditer(told)] or told.splitlines() or [f"exit code {code}"]
        what, hint = f"failed: {raised[-1]}", "HELIOS_DEBUG=1 shows all that it said"
    kind = ChildStoppedError if code is None or code < 0 else ChildError
    error = kind(f"the process {module} {what}", hint=hint, answers=answers)
    error.add_note("\n".join(told.splitlines()[-TOLD_LINES:]))
    raise error


def _folders() -> str:
    """Where our packages lie, a line each."""
    origins = [importlib.util.find_spec(name).origin for name in _PACKAGES]
    return "\n".join(str(Path(origin).absolute().parents[1]) for origin in origins)


def _read(written: bytes) -> list[dict]:
    """Whole lines; the process may have been killed in the last one."""
    answers = [json.loads(line) for line in written.decode().split("\n")[:-1]]
    for said in answers:
        if "error" in said:
            raise getattr(errors, said["error"])(said["message"], hint=said["hint"])
    return answers


def serve(answers: Callable[[dict], Iterable[dict]], *, seconds: int = 0) -> None:
    """The main program of such a process: a question from the command line, answers to a file as they come.

    With `seconds` the process is killed when an answer takes longer, whatever waits for it.
    """
    question, file = json.loads(sys.argv[1]), Path(sys.argv[2])
    with file.open("a", encoding="utf-8") as out:

        def say(said: dict) -> None:
            out.write(json.dumps(said) + "\n")
            out.flush()

        signal.alarm(seconds)  # not handled by Python, which a call of the driver that never returns would keep waiting
        try:
            for said in answers(question):
                say(said)
                signal.alarm(seconds)
        except HeliosError as error:  # goes over to `ask`, which raises it again
            # An error class of another module goes over as its nearest base in `errors`, which `ask` knows.
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
            say({"error": kind, "message": error.message, "hint": error.hint})
