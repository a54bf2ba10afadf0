"""Renders that are killed and run again, for tests and the soak script. Child processes are forks: torch is there."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch

from helios_cli.engine.chunks import render_chunks
from helios_cli.engine.events import Event
from helios_cli.engine.models import Models
from helios_cli.film.cache import Cache
from helios_cli.film.target import Target
from helios_cli.film.writer import open_writer
from helios_cli.recipe.fingerprint import Arithmetic, chunk_fingerprints
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.weights.checkpoint import weights_identity

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()

PROMPTS = ("a red circle moves left", "the green square", "blue ball over the background", "a ball moves slowly up")


def plan(*parts: tuple[str, int, str | int | None], size: tuple[int, int] = (64, 64), steps=(1, 1, 1)) -> Plan:
    """A plan of (prompt, frames kept, seed) a chunk; a chunk with a seed is a cut."""
    chunks, start = [], 0
    for index, (prompt, frames, seed) in enumerate(parts):
        prompts = ((prompt, 1.0),)
        chunks.append(Chunk(index, 0, start, frames, prompts, seed is not None, seed))
        start += frames
    return Plan("test", tuple(chunks), start, 24, size, "", tuple(steps), 1.0)


def fingerprints_of(film: Plan, models: Models) -> list[str]:
    arithmetic = Arithmetic("cpu", str(models.dtype), torch.__version__)
    return chunk_fingerprints(film, weights_identity(models.checkpoint), arithmetic)


def run(film: Plan, models: Models, out: str | Path, cache: Cache | None = None, **options) -> list[Event]:
    """One run of `helios render`, without the command line."""
    writer = open_writer(out, size=film.size, fps=film.fps, **options)
    return list(
        render_chunks(film, models, writer, fingerprints=lambda plan: fingerprints_of(plan, models), cache=cache)
    )


def decoded(path: Path, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Frames [T, bytes] of a film or picture folder, by ffmpeg."""
    source = ["-f", "image2", "-i", f"{path}/frame_%06d.png"] if path.is_dir() else ["-i", f"file:{path}"]
    command = [FFMPEG, "-v", "error", *source, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size[0] * size[1] * 3)


def journaled(out: Path) -> list[dict]:
    """Return the finished chunks that the journal next to `out` records."""
    journal = Target.of(out).journal
    lines = [line for line in journal.read_bytes().split(b"\n")[:-1] if line] if journal.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return [line for line in found if "chunk" in line]


def in_child(work: Callable[[], object], *, kill_after: float | None = None) -> int:
    """Run `work` in a process of its own, killed after so many seconds. Returns the code, or minus the signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended_at(
    reached: str | Callable[[str], bool], number: int, work: Callable[[], int], *, stream: str = "stderr"
) -> tuple[int, str]:
    """Run `work`, a command, in a process of its own, and send it a signal when a line of its `stream` is reached: one
    that begins with a text, or for which a function holds. Returns its exit code, or minus the signal that ended it,
    and what it wrote there after that."""
    is_there = reached if callable(reached) else lambda said: said.startswith(reached)
    sys.stdout.flush()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            descriptor = {"stdout": 1, "stderr": 2}[stream]
            os.dup2(writing, descriptor)
            os.close(writing)
            setattr(sys, stream, open(descriptor, "w", closefd=False))  # noqa: SIM115
            code = work()
            getattr(sys, stream).flush()
            os._exit(code)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with open(reading) as lines:
        began = any(map(is_there, lines))
        os.kill(pid, number)
        rest = lines.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert began, f"it ended before {reached!r}, with {code}"
    return code, rest


class KillAt:
    """Ends this process by SIGKILL at the `step`-th call that makes something last: fsync, replace, unlink.

    With `torn` a file about to be synced loses its last bytes first, as if its write had not come to its end.
    """

    def __init__(self, step: int, *, torn: bool) -> None:
        self.step, self.torn, self.calls = step, torn, 0
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self.counting(getattr(os, name)))

    def counting(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.step:
                if self.torn and function.__name__ == "fsync":
                    tear(args[0])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call


def tear(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        os.truncate(f"/proc/self/fd/{descriptor}", max(0, status.st_size - 7))
