"""The program of `--through`: it takes a film's frames at its standard input, and gives others at its standard output.

Both are raw RGB, 3 bytes a pixel, frame after frame. ffmpeg writes into the program's input; what comes out is counted
here. The program runs in a shell and in a process group of its own, which ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO

from helios_cli.errors import HeliosError, MachineError
from helios_cli.film import ffmpeg
from helios_cli.film.filters import FrameFormat
from helios_cli.units import counted, format_duration
from helios_cli.visible import printable

SILENT_SECONDS = 600
"""Longest time in which a program may neither take a frame, nor give a byte, nor compute."""

LOOK_SECONDS = 0.5
"""Time between two looks at the program, and between two reports of how far it is."""

TAIL_LINES = 6
MAX_SHOWN = 200
"""Characters of the command in a message."""

GATED = 'read -r go </dev/fd/$0 && exec /bin/sh -c "$1"'
"""Script that runs the command $1 once a line is in the pipe $0, or never if that is closed before: if this process is
killed before there is a guard, no command outlives it."""

NOT_FOUND, NOT_RUNNABLE = 127, 126
"""Exit statuses of a shell."""


@dataclass(frozen=True)
class Frames:
    """So many frames of one format."""

    format: FrameFormat
    count: int

    @property
    def bytes_each(self) -> int:
        return 3 * self.format.size[0] * self.format.size[1]

    def environment(self, prefix: str) -> dict[str, str]:
        """Return the variables that describe them to a program, HELIOS_<prefix>WIDTH and so on.

        The rate is a fraction such as 24000/1001, or 24."""
        (width, height), rate = self.format.size, self.format.rate
        values = {"WIDTH": width, "HEIGHT": height, "FPS": rate, "FRAMES": self.count}
        return {f"HELIOS_{prefix}{name}": str(value) for name, value in values.items()}


def frames_at(rate: Fraction, of: Frames) -> int:
    """Return how many frames of `rate` last as long as the frames `of`."""
    return max(1, round(of.count * rate / of.format.rate))


def send_through(
    command: str,
    given: Frames,
    wanted: Frames,
    read_into: Callable[[int], ffmpeg.Process],
    take: Callable[[memoryview], None],
) -> Iterator[int]:
    """Send frames through the program `command`; yield now and then how many have come out.

    Args:
        read_into: starts an ffmpeg that writes the given frames into a descriptor.
        take: is called with each frame that comes out, and with the last one again if less than a frame's time of the
            given ones is missing at the end: there is nothing after it to interpolate with.

    Raises:
        HeliosError: the program failed, stopped before it had all frames, was silent for SILENT_SECONDS, or gave other
            frames than it should.
    """
    with _Program(command, given, wanted, read_into) as program:
        yield from program.frames(take)


class _Program:
    """The running program."""

    def __init__(self, command: str, given: Frames, wanted: Frames, read_into: Callable[[int], ffmpeg.Process]) -> None:
        self._command, self._given, self._wanted = command, given, wanted
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._has_ended = False
        environment = os.environ | given.environment("") | wanted.environment("OUT_")
        reading, writing = os.pipe()
        waiting, gate = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in `ffmpeg.Process`
        try:
            self._popen = subprocess.Popen(
                ["/bin/sh", "-c", GATED, str(waiting), command],
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
                pass_fds=[waiting],
            )
            self._guard = ffmpeg.guard_of(self._popen.pid)
            os.write(gate, b"\n")
        except OSError as error:
            os.close(writing)
            raise MachineError(f"the program of --through does not start: /bin/sh: {error.strerror}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for descriptor in (reading, waiting, gate):
                os.close(descriptor)
        assert self._popen.stdout is not None and self._popen.stderr is not None
        self._output = self._popen.stdout
        self._messages = threading.Thread(
            target=self._read_messages, args=[self._popen.stderr], name="program messages", daemon=True
        )
        self._messages.start()
        try:
            self._reader = read_into(writing)
        except BaseException:
            self._end()
            raise
        finally:
            os.close(writing)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._reader.kill()
        self._output.close()

    def _read_messages(self, stderr: IO[bytes]) -> None:
        with stderr:
            while line := stderr.readline(ffmpeg.MAX_LINE):
                text = printable(line.decode(errors="replace").strip(), ffmpeg.MAX_LINE)
                if text:
                    self._tail.append(text)

    def _end(self) -> None:
        """End the program, and all that it started in its group. May be called twice."""
        if not self._has_ended:
            self._has_ended = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
            if self._guard:
                self._guard.communicate(b"\n")
        self._messages.join(LOOK_SECONDS)  # longer only if a process has left the group and holds the pipe

    def frames(self, take: Callable[[memoryview], None]) -> Iterator[int]:
        """Pass each frame that comes out to `take`; yield their number now and then."""
        frame = memoryview(bytearray(self._wanted.bytes_each))
        count = filled = 0
        readable = select.poll()
        readable.register(self._output, select.POLLIN)
        watch = _Watch(self._silent)
        shown = time.monotonic()
        while True:
            if readable.poll(LOOK_SECONDS * 1000):
                size = os.readv(self._output.fileno(), [frame[filled:]])
                if not size:
                    break
                filled += size
                if count == self._wanted.count:
                    raise self._failure("gave more frames than it should", self._expected())
                if filled == len(frame):
                    take(frame)
                    count, filled = count + 1, 0
            elif self._popen.poll() is not None:  # what it left in the background may hold its output open
                break
            watch.look((count, filled, self._reader.num_frames), self._popen.pid)
            if time.monotonic() - shown >= LOOK_SECONDS:
                shown = time.monotonic()
                yield count
        self._require_success(watch, (count, filled))
        self._require_all(count, filled)
        for _ in range(self._wanted.count - count):
            take(frame)
        yield self._wanted.count

    def _require_success(self, watch: _Watch, so_far: tuple[int, int]) -> None:
        """Wait for the program, which has closed its output. Raise if it failed, or left frames unread."""
        while self._popen.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(LOOK_SECONDS)
            watch.look((*so_far, self._reader.num_frames), self._popen.pid)
        status = self._popen.returncode
        self._end()  # also what it left in the background, which holds its input open
        read = self._reader.wait()
        if status:
            raise self._failure(*_ending(status))
        if read and "Broken pipe" not in self._reader.messages(ffmpeg.TAIL_LINES):
            raise self._reader.failure(read)
        if read:
            why = f"it took about {self._reader.num_frames} of {counted(self._given.count, 'frame')}"
            raise self._failure("ended before it had read all frames", f"{why}: let it read to the end of its input")

    def _require_all(self, count: int, filled: int) -> None:
        """Raise unless whole frames came out, and as many as should, except for less than a given frame's time."""
        if filled:
            part = f"{filled:,} of {self._wanted.bytes_each:,} bytes of a frame at the end"
            raise self._failure(f"gave {counted(count, 'frame')} and {part}", self._expected())
        missing = self._wanted.count - count
        if not count or missing >= max(Fraction(1), self._wanted.format.rate / self._given.format.rate):
            raise self._failure(f"gave {count} of {counted(self._wanted.count, 'frame')}", self._expected())

    def _expected(self) -> str:
        size, rate = self._wanted.format.size, self._wanted.format.rate
        wanted = (
            f"{counted(self._wanted.count, 'frame')} of {size[0]}x{size[1]}, {self._wanted.bytes_each:,} bytes each"
        )
        return f"{wanted}, at {float(rate):g} fps were expected: see --through-size and --through-fps"

    def _silent(self, seconds: float) -> HeliosError:
        return self._failure(
            f"did nothing for {format_duration(seconds)}: it took no frame, gave none, and did not compute",
            f"it had taken {self._reader.num_frames} of {counted(self._given.count, 'frame')}",
        )

    def _failure(self, what: str, why: str = "") -> HeliosError:
        """Return the error for a program that did `what`, with the last lines of its messages."""
        self._end()
        parts = [f"the program of --through {what}", why, f"it was `{printable(self._command, MAX_SHOWN)}`"]
        if self._tail:
            parts.append(f"its last messages: {' | '.join(self._tail)}")
        hint = "all chunks are safe: run it again, with another --through too; only this stage is done again"
        return HeliosError("; ".join(filter(None, parts)), hint=hint)


class _Watch:
    """Notices that nothing has happened for SILENT_SECONDS, and raises `silent` then."""

    def __init__(self, silent: Callable[[float], HeliosError]) -> None:
        self._silent, self._since, self._computed = silent, time.monotonic(), ""
        self._state: tuple[int, ...] = ()

    def look(self, state: tuple[int, ...], group: int) -> None:
        """Compare with the last look. It reads the processor time of the group only where nothing else changed."""
        now = time.monotonic()
        if state != self._state:
            self._since, self._state = now, state
        elif now - self._since >= min(SILENT_SECONDS, 2 * LOOK_SECONDS):
            computed = _computed(group)
            if computed != self._computed:
                self._since, self._computed = now, computed
            elif now - self._since >= SILENT_SECONDS:
                raise self._silent(now - self._since)


def _computed(group: int) -> str:
    """Return a text that changes while a process of the group computes; "" where the system does not say."""
    try:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return ""
    return " ".join(ffmpeg.processor_time(pid) for pid in pids if _group_of(pid) == group)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _ending(status: int) -> tuple[str, str]:
    """Say how a program ended, and why, by the exit status of its shell."""
    if status == NOT_FOUND:
        return "was not found, or did not find another one (exit status 127)", ""
    if status == NOT_RUNNABLE:
        return "cannot be run (exit status 126)", "is it marked as executable?"
    number = -status if status < 0 else status - 128
    if status < 0 or status > 128:
        name = signal.strsignal(number) if number in set(signal.Signals) else None
        why = "did memory run out?" if number == signal.SIGKILL else ""
        return f"was ended by signal {number}" + (f" ({name})" if name else ""), why
    return f"failed with exit status {status}", ""
