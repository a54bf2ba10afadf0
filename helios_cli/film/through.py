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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from helios_cli.errors import HeliosError, MachineError
from helios_cli.film import ffmpeg
from helios_cli.film.filters import FrameFormat
from helios_cli.film.guarded import LOOK_SECONDS, MAX_LINE, Guarded, Stall, processor_time_of_group
from helios_cli.units import counted, format_duration
from helios_cli.visible import printable

SILENT_SECONDS = 600
"""Longest time in which a program may neither take a frame, nor give a byte, nor compute."""

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


class Program(Guarded):
    """The running program `command`, which takes the frames `given`. Use it as a context manager, and `frames` once.

    `read_into` starts an ffmpeg that writes the given frames into a descriptor.
    """

    def __init__(self, command: str, given: Frames, wanted: Frames, read_into: Callable[[int], ffmpeg.Process]) -> None:
        self._command, self._given, self._wanted, self._has_ended = command, given, wanted, False
        reading, writing = os.pipe()
        waiting, gate = os.pipe()
        try:
            super().__init__(
                ["/bin/sh", "-c", GATED, str(waiting), command],
                tail=TAIL_LINES,
                stdin=reading,
                stdout=subprocess.PIPE,
                env=os.environ | given.environment("") | wanted.environment("OUT_"),
                pass_fds=[waiting],
            )
            os.write(gate, b"\n")
        except OSError as error:
            os.close(writing)
            raise MachineError(f"the program of --through does not start: /bin/sh: {error.strerror}") from error
        finally:
            for descriptor in (reading, waiting, gate):
                os.close(descriptor)
        assert self._popen.stdout is not None
        self._output = self._popen.stdout
        try:
            self._reader = read_into(writing)
        except BaseException:
            self._end()
            raise
        finally:
            os.close(writing)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._reader.kill()
        self._output.close()

    def _hear(self, line: str) -> None:
        if text := printable(line.strip(), MAX_LINE):
            super()._hear(text)

    def _end(self) -> None:
        """End the program, and all that it started in its group. May be called twice."""
        if not self._has_ended:
            self._has_ended = True
            self._kill_group()
            self._popen.wait()
            self._release()
        self._messages.join(LOOK_SECONDS)  # longer only if a process has left the group and holds the pipe

    def frames(self, take: Callable[[memoryview], None]) -> Iterator[int]:
        """Pass each frame that comes out to `take`; yield their number now and then.

        The last one is passed again if less than a frame's time of the given ones is missing at the end: there is
        nothing after it to interpolate with. HeliosError if the program failed, stopped before it had all frames, was
        silent for SILENT_SECONDS, or gave other frames than it should.
        """
        frame = memoryview(bytearray(self._wanted.bytes_each))
        count = filled = 0
        readable = select.poll()
        readable.register(self._output, select.POLLIN)
        stall = Stall(SILENT_SECONDS, lambda: processor_time_of_group(self._popen.pid))
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
            self._look(stall, count, filled)
            if time.monotonic() - shown >= LOOK_SECONDS:
                shown = time.monotonic()
                yield count
        while self._popen.poll() is None:  # it has closed its output
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(LOOK_SECONDS)
            self._look(stall, count, filled)
        self._require_success()
        self._require_all(count, filled)
        for _ in range(self._wanted.count - count):
            take(frame)
        yield self._wanted.count

    def _look(self, stall: Stall, *so_far: int) -> None:
        """Raise if the program has done nothing for SILENT_SECONDS."""
        if stall.has_come((*so_far, self._reader.num_frames)):
            raise self._failure(
                f"did nothing for {format_duration(SILENT_SECONDS)}: it took no frame, gave none, and did not compute",
                f"it had taken {self._reader.num_frames} of {counted(self._given.count, 'frame')}",
            )

    def _require_success(self) -> None:
        """Raise if the program, which has ended, failed or left frames unread."""
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

    def _failure(self, what: str, why: str = "") -> HeliosError:
        """Return the error for a program that did `what`, with the last lines of its messages."""
        self._end()
        parts = [f"the program of --through {what}", why, f"it was `{printable(self._command, MAX_SHOWN)}`"]
        if self._tail:
            parts.append(f"its last messages: {' | '.join(self._tail)}")
        hint = "all chunks are safe: run it again, with another --through too; only this stage is done again"
        return HeliosError("; ".join(filter(None, parts)), hint=hint)


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
