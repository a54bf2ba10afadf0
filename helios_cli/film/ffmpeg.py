"""The ffmpeg program: finding it, what it must be able to do, and running it.

Every ffmpeg of helios is started here (`film.guarded`). None outlives this process, and one that stops making progress
is ended. `film.reading` reads files with it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import select
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import IO, Any

from helios_cli import machine
from helios_cli.errors import HeliosError, MachineError
from helios_cli.film.compression import CRF_RANGES, LOSSLESS, Encoding
from helios_cli.film.disk import full_disk, too_large
from helios_cli.film.guarded import LOOK_SECONDS, Guarded, Stall, processor_time

INSTALL_HINT = (
    "set IMAGEIO_FFMPEG_EXE to the path of a complete ffmpeg, 5.1 or newer, "
    "or unset it and run `pip install --force-reinstall imageio-ffmpeg`"
)
NEEDED = {
    "protocols": ("file", "pipe"),
    "demuxers": ("mov", "matroska", "rawvideo", "ffmetadata"),
    "muxers": ("mp4", "mov", "matroska", "rawvideo", "image2pipe", "ffmetadata", "framecrc", "null"),
    "decoders": ("h264", "ffv1", "rawvideo"),
    "encoders": ("ffv1", "ppm", "pgm", "rawvideo", "wrapped_avframe"),
    "filters": ("scale", "crop", "format", "setparams", "setpts", "fps", "trim", "select", "extractplanes"),
    "bsfs": ("setts",),
}
"""The parts of ffmpeg that every film needs, by ffmpeg's list of such parts. The encoder that a film needs is
tried."""

TAIL_LINES = 20
KEPT_LINES = 1000
"""Messages that are kept of those asked for: the last ones."""

READING_SECONDS = 60
"""Longest wait for a frame of a file that is read: more than the slowest takes on a busy machine."""

WRITING_SECONDS = 600
"""Longest time in which an ffmpeg that writes may neither take a frame, nor make progress, nor compute."""

PROGRESS_LINE = re.compile(
    r"(frame|fps|stream_\w+|bitrate|total_size|out_time\w*|dup_frames|drop_frames|speed|progress)=\s*(\S+)"
)


@dataclass(frozen=True)
class Ffmpeg:
    """An ffmpeg that starts and can do what helios needs.

    `rate_option` is its option for the frames of a constant rate: "-fps_mode", before 5.1 "-vsync".
    """

    path: str
    version: str
    rate_option: str = "-fps_mode"


def program() -> Ffmpeg:
    """Return the ffmpeg to use: IMAGEIO_FFMPEG_EXE, else the one that imageio-ffmpeg bundles, else the system's.

    Raises MachineError if there is none or it does not start.
    """
    import imageio_ffmpeg  # needed only where films are read or written

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MachineError("no ffmpeg was found", hint=INSTALL_HINT) from error
    return _started(path)


@lru_cache
def _started(path: str) -> Ffmpeg:
    version = re.match(r"ffmpeg version (\S+)", _answer(path, "version"))
    if not version:
        raise MachineError(f"{path} does not behave like ffmpeg", hint=INSTALL_HINT)
    missing = []
    for kind, names in NEEDED.items():
        # A line of such a list: " D  mov,mp4,m4a  QuickTime / MOV"
        words = [word for line in _answer(path, kind).splitlines() for word in line.split()[:3]]
        there = {name for word in words for name in word.split(",")}
        missing += [f"{name} ({kind.removesuffix('s')})" for name in names if name not in there]
    if missing:
        raise MachineError(
            f"ffmpeg {version[1]} at {path} is too old, or built without some parts: it lacks {', '.join(missing)}",
            hint=INSTALL_HINT,
        )
    return Ffmpeg(path, version[1], "-fps_mode" if "-fps_mode" in _answer(path, "h long") else "-vsync")


def _answer(path: str, question: str) -> str:
    """Return what the program at `path` prints for `-version`, `-muxers` and the like."""
    try:
        answer = subprocess.run(
            [path, *f"-{question}".split()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            start_new_session=True,
            timeout=READING_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"ffmpeg at {path} does not respond", hint=INSTALL_HINT) from error
    except OSError as error:
        raise MachineError(f"ffmpeg at {path} does not start: {error.strerror}", hint=INSTALL_HINT) from error
    return answer.stdout.decode(errors="replace") if answer.returncode == 0 else ""


def _environment() -> dict[str, str]:
    """Return the variables of ffmpeg, without the user's for its messages."""
    environment = {**os.environ, "AV_LOG_FORCE_NOCOLOR": "1", "SVT_LOG": "1"}
    environment.pop("FFREPORT", None)
    return environment


def file_argument(path: str | os.PathLike) -> str:
    """Return `path` so that ffmpeg takes it for a file whatever its name is: no option, URL or protocol.

    If the file is a playlist in disguise, ffmpeg then follows no links into the network.
    """
    return "file:" + os.path.abspath(path)


def frame_rate(fps: float) -> Fraction:
    """Return the exact rate that `fps` means: 24000/1001 for 23.976 (or 23.98), else the nearest n/1001."""
    for whole in (24, 30, 48, 60, 120):
        ntsc = Fraction(whole * 1000, 1001)
        if abs(fps - ntsc) < 0.005:
            return ntsc
    return Fraction(fps).limit_denominator(1001)


def every_frame() -> list[str]:
    """Return output options with which no frame is dropped or doubled."""
    return [program().rate_option, "passthrough"]


class Process(Guarded):
    """A running ffmpeg, with the count of frames that came out.

    `doing` is "writing film.mp4": an ffmpeg that stops making progress is ended, with an error of class `blame` that
    says so. `stdin` and `stdout` are subprocess constants, `pass_fds` open files that ffmpeg sees as `pipe:N`.
    `patience` is how long it may take no input and make no progress, None where that is up to who reads its output.
    `memory` limits its bytes. It ends when this process does, however that ends, and with a `with` block. `kept` are
    its messages that match `keep`.
    """

    stdout: IO[bytes]
    """Exists with `stdout=subprocess.PIPE`."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        doing: str,
        blame: type[HeliosError] = MachineError,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        memory: int | None = None,
        patience: float | None = WRITING_SECONDS,
        keep: re.Pattern[str] | None = None,
    ) -> None:
        command = [program().path, "-hide_banner", "-nostdin", "-loglevel", "error", "-nostats"]
        command += ["-progress", "pipe:2", *arguments]
        self.doing = doing
        self.num_frames = 0
        self.kept: deque[str] = deque(maxlen=KEPT_LINES)
        self._blame, self._keep, self._patience = blame, keep, patience
        self._progress: dict[str, str] = {}
        self._writing = threading.Lock()
        super().__init__(command, tail=TAIL_LINES, stdin=stdin, stdout=stdout, pass_fds=pass_fds, env=_environment())
        machine.children.watch(self._popen.pid)
        if memory and hasattr(resource, "prlimit"):  # Linux
            with contextlib.suppress(ProcessLookupError, PermissionError, ValueError):
                resource.prlimit(self._popen.pid, resource.RLIMIT_DATA, (memory, memory))
        if self._popen.stdout:
            self.stdout = io.BufferedReader(_Patient(self._popen.stdout, self._stalled), 1 << 16)
        if self._popen.stdin:
            self._stdin = self._popen.stdin
            os.set_blocking(self._stdin.fileno(), False)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _read(self, stderr: IO[bytes]) -> None:
        super()._read(stderr)
        self._release()

    def _hear(self, line: str) -> None:
        progress = PROGRESS_LINE.fullmatch(line)
        if progress is None:
            super()._hear(line)
            if self._keep and self._keep.match(line):
                self.kept.append(line)
        elif progress[1] in ("frame", "out_time", "total_size"):
            self._progress[progress[1]] = progress[2]
            self.num_frames = int(self._progress.get("frame", 0))

    def write(self, data: memoryview | bytes) -> None:
        """Give ffmpeg `data` at its stdin. BrokenPipeError if it has ended."""
        rest, writable = memoryview(data).cast("B"), select.poll()
        with self._writing:
            pipe = self._stdin.fileno()
            writable.register(pipe, select.POLLOUT)
            while rest:
                if not writable.poll(None if self._patience is None else self._patience * 1000):
                    raise self._stalled(self._patience or 0)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(pipe, rest) :]

    def close_input(self) -> None:
        """Close ffmpeg's stdin, after a `write` that runs in another thread."""
        with self._writing:
            machine.children.look()
            self._stdin.close()

    def wait(self, at_most: float | None = None) -> int:
        """Wait until ffmpeg ends: `at_most` seconds where given, else as long as it makes progress. Returns its exit
        status, negative for a signal."""
        if at_most is None:
            for _ in self._looks():
                pass
        elif not self._has_ended(at_most):
            self.kill()
            raise self._stalled(at_most)
        status = self._popen.wait()
        machine.children.forget(self._popen.pid)
        return status

    def watch(self) -> Iterator[int]:
        """Yield how many frames came out, now and then until ffmpeg ends.

        Raises `failure` if it failed, and an error if it stops making progress."""
        for _ in self._looks():
            yield self.num_frames
        self.complete()
        yield self.num_frames

    def _looks(self) -> Iterator[None]:
        """Yield now and then until ffmpeg ends. Raises an error if it stops making progress."""
        stall = Stall(self._patience, lambda: processor_time(self._popen.pid))
        while not self._has_ended(LOOK_SECONDS):
            if stall.has_come(dict(self._progress)):
                self.kill()
                raise self._stalled(self._patience or 0)
            yield

    def _has_ended(self, seconds: float) -> bool:
        """Return whether ffmpeg ends within so many seconds."""
        self._messages.join(seconds)  # until ffmpeg closes its stderr; Popen.wait would poll, up to 50 ms late
        return not self._messages.is_alive()

    def complete(self) -> None:
        """Wait until ffmpeg ends, and end it if this is interrupted. Raises `failure` if it failed."""
        try:
            status = self.wait()
        except BaseException:
            self.kill()
            raise
        if status:
            raise self.failure(status)

    def kill(self) -> None:
        """End ffmpeg at once, and its children where it is a wrapper script; close the pipes. May be called twice."""
        if self._popen.poll() is None:
            self._kill_group()
        self.wait()
        if self._popen.stdout:
            self._popen.stdout.close()

    def _stalled(self, seconds: float) -> HeliosError:
        return self._blame(
            f"ffmpeg stopped making progress while {self.doing}, for {seconds:g} s",
            hint="try the file in a player, or with another ffmpeg (IMAGEIO_FFMPEG_EXE)",
        )

    def messages(self, most: int = 4) -> str:
        """Return ffmpeg's last messages on one line, or ""."""
        return "; ".join(line for line in list(self._tail)[-most:] if line)

    def failure(self, status: int) -> MachineError:
        """Return the error for an ffmpeg that ended with `status`."""
        messages, doing = self.messages(), self.doing
        if "No space left" in messages:
            return full_disk(doing)
        if "File too large" in messages or status == -signal.SIGXFSZ:
            return too_large(doing)
        if status < 0:
            return MachineError(
                f"ffmpeg was killed by signal {-status} ({signal.strsignal(-status)}) while {doing}",
                hint="check whether memory ran out, then run it again",
            )
        hint = f"try another ffmpeg: {INSTALL_HINT}"
        messages = messages or "no message"
        return MachineError(f"ffmpeg stopped with exit status {status} while {doing}: {messages}", hint=hint)


class _Patient(io.RawIOBase):
    """A pipe that ffmpeg writes into. Waiting for it too long raises `stalled`."""

    def __init__(self, pipe: IO[bytes], stalled: Callable[[float], HeliosError]) -> None:
        self._pipe, self._stalled = pipe, stalled
        self._readable = select.poll()
        self._readable.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._readable.poll(READING_SECONDS * 1000):
            raise self._stalled(READING_SECONDS)
        return os.readv(self._pipe.fileno(), [buffer])


def encodes(encoder: Sequence[str]) -> bool:
    """Return whether this ffmpeg writes a frame with the output options `encoder` (["-c:v", "libx264", ...]).

    It tries: ffmpeg also lists encoders for absent hardware.
    """
    source = ["-f", "lavfi", "-i", "color=s=256x256:r=24:d=0.04"]
    trial = Process([*source, "-frames:v", "1", *encoder, "-f", "null", "-"], doing="trying an encoder")
    return trial.wait() == 0


def check_encoding(encoding: Encoding) -> None:
    """Check before a render that ffmpeg can encode so. MachineError if it cannot."""
    if not encodes(encoding.arguments()):
        where = f"ffmpeg {program().version} at {program().path}"
        raise MachineError(f"{where} cannot encode {encoding.codec}", hint=INSTALL_HINT)


def available_encoders() -> tuple[str, ...]:
    """Return the codecs for .mp4, and "ffv1", that this machine's ffmpeg encodes; each is tried on one frame."""
    trials = {codec: Encoding(codec).arguments() for codec in CRF_RANGES} | {"ffv1": list(LOSSLESS)}
    return tuple(name for name, arguments in trials.items() if encodes(arguments))
