"""The ffmpeg program: finding it, running it, and reading what it says about a file.

Every ffmpeg of helios is started here, away from the terminal: Ctrl-C reaches the engine alone, which then decides.
imageio-ffmpeg bundles no ffprobe, so `probe` reads the description that ffmpeg prints.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import IO

from helios_cli.engine.disk import full_disk, too_large
from helios_cli.errors import InputError, MachineError

INSTALL_HINT = (
    "run `pip install --force-reinstall imageio-ffmpeg`, "
    "or set IMAGEIO_FFMPEG_EXE to the path of an ffmpeg 5.1 or newer"
)
TAIL_LINES = 20

NO_MESSAGE = "no message"
"""What `Process.messages` gives where ffmpeg had nothing to say."""

PROGRESS_LINE = re.compile(
    r"(frame|fps|stream_\w+|bitrate|total_size|out_time\w*|dup_frames|drop_frames|speed|progress)=\s*(\S+)"
)


@dataclass(frozen=True)
class Program:
    """An ffmpeg that starts: its path, and the version it gives for itself."""

    path: str
    version: str


def program() -> Program:
    """The ffmpeg to use: IMAGEIO_FFMPEG_EXE, else the one imageio-ffmpeg bundles, else the system's.

    Raises MachineError if there is none or it does not start.
    """
    import imageio_ffmpeg  # which a film that is not written can do without

    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MachineError("no ffmpeg was found", hint=INSTALL_HINT) from error
    return _started(path)


@lru_cache
def _started(path: str) -> Program:
    try:
        result = subprocess.run([path, "-version"], **_detached(), stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise MachineError(f"ffmpeg at {path} does not start: {error.strerror}", hint=INSTALL_HINT) from error
    version = re.match(rb"ffmpeg version (\S+)", result.stdout)
    if result.returncode or not version:
        raise MachineError(f"{path} does not answer as ffmpeg does", hint=INSTALL_HINT)
    return Program(path, version[1].decode(errors="replace"))


def _detached() -> dict:
    """Popen arguments that keep the terminal's signals and the user's ffmpeg logging variables from a child."""
    environment = {**os.environ, "AV_LOG_FORCE_NOCOLOR": "1", "SVT_LOG": "1"}
    environment.pop("FFREPORT", None)
    return {"env": environment, "start_new_session": True}


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A Ctrl-C waits, and a child that begins now never gets one: not even before it has left the terminal's group."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def file_argument(path: str | os.PathLike) -> str:
    """`path` so that ffmpeg takes it for a file whatever its name is: no option, URL or protocol.

    From a file that is a playlist in disguise ffmpeg then follows no links into the network.
    """
    return "file:" + os.path.abspath(path)


def frame_rate(fps: float) -> Fraction:
    """`fps` as the exact rate that is meant: 23.976 (or 23.98) is 24000/1001; others to the nearest n/1001."""
    for whole in (24, 30, 48, 60, 120):
        ntsc = Fraction(whole * 1000, 1001)
        if abs(fps - ntsc) < 0.005:
            return ntsc
    return Fraction(fps).limit_denominator(1001)


class Process:
    """A running ffmpeg. A thread reads its standard error: the last lines, and the count of frames that came out.

    `stdin` and `stdout` are subprocess constants, `pass_fds` open files that ffmpeg sees as `pipe:N`. It ends by itself
    when the pipe at its stdin closes, thus also when this process dies.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> None:
        command = [program().path, "-hide_banner", "-nostdin", "-loglevel", "error", "-nostats"]
        command += ["-progress", "pipe:2", *arguments]
        self.num_frames = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        with _interrupts_held():
            self._popen = subprocess.Popen(
                command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, pass_fds=pass_fds, **_detached()
            )
        self._reader = threading.Thread(target=self._read_messages, name="ffmpeg messages", daemon=True)
        self._reader.start()

    @property
    def stdin(self) -> IO[bytes]:
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        return self._popen.stdout

    def _read_messages(self) -> None:
        with self._popen.stderr as lines:
            for line in lines:
                text = line.decode(errors="replace").strip()
                progress = PROGRESS_LINE.fullmatch(text)
                if progress is None:
                    self._tail.append(text)
                elif progress[1] == "frame":
                    self.num_frames = int(progress[2])

    def wait(self) -> int:
        """Exit status (negative: the signal), once ffmpeg has ended and its messages are read."""
        status = self._popen.wait()
        self._reader.join()
        return status

    def kill(self) -> None:
        """End ffmpeg at once, with its children where it is a wrapper script; close the pipes. May be called twice."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended by itself just now
                os.killpg(self._popen.pid, signal.SIGKILL)
        self.wait()
        if self._popen.stdout:
            self._popen.stdout.close()

    def messages(self) -> str:
        """ffmpeg's last words on one line."""
        return "; ".join(line for line in list(self._tail)[-4:] if line) or NO_MESSAGE

    def failure(self, status: int, doing: str) -> MachineError:
        """The error for an ffmpeg that ended with `status` while `doing` ("writing film.mp4")."""
        messages = self.messages()
        if "No space left" in messages:
            return full_disk(doing)
        if "File too large" in messages or status == -signal.SIGXFSZ:
            return too_large(doing)
        if status < 0:
            return MachineError(
                f"ffmpeg was ended by signal {-status} ({signal.strsignal(-status)}) while {doing}",
                hint="look for memory running out, then run it again",
            )
        hint = f"see whether it works with another ffmpeg: {INSTALL_HINT}"
        return MachineError(f"ffmpeg stopped with exit status {status} while {doing}: {messages}", hint=hint)


ENCODERS = {
    # The profile option is a ceiling; 8x8dct is what makes the fastest presets High as well.
    "h264": ("-c:v", "libx264", "-profile:v", "high", "-x264-params", "8x8dct=1"),
    # Apple's players open HEVC only under the tag hvc1.
    "hevc": ("-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=error"),
    "av1": ("-c:v", "libsvtav1"),
}
LOSSLESS = ("-c:v", "ffv1", "-level", "3", "-g", "1", "-slicecrc", "1")

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
SVT_AV1_PRESETS = dict(zip(PRESETS, (12, 11, 10, 9, 8, 7, 5, 4, 2), strict=True))
CRF_RANGES = {"h264": (1, 51), "hevc": (0, 51), "av1": (1, 63)}
"""From best to worst. H.264 leaves out 0: that is lossless, in a profile most players show as black."""

DECODING_DELAYS = {"h264": 2, "hevc": 2, "av1": 0}
"""Frames that decoding runs ahead of showing. The encoders leave it out of pieces too short to need it."""

ENCODER_THREADS = 4
"""Fixed, since the number moves the encoders' decisions: a film begun on one machine goes on equally on another."""

TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_inp,format=yuv420p,"
    "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
)
"""Converts and tags. The output options -color_primaries and -color_trc are lost where there is a filter."""

TO_TAGGED_RGB = "format=bgr0,setparams=color_primaries=bt709:color_trc=bt709:colorspace=gbr:range=pc"


@dataclass(frozen=True)
class Encoding:
    """How the frames of an .mp4 are compressed. Raises InputError for values that the codec does not have."""

    codec: str = "h264"
    crf: int = 17
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.codec not in CRF_RANGES:
            raise InputError(f"no codec is called {self.codec}", hint=f"write one of {', '.join(CRF_RANGES)}")
        low, high = CRF_RANGES[self.codec]
        if not low <= self.crf <= high:
            hint = f"write a number from {low} (best) to {high}"
            if self.codec == "h264":
                hint += "; for a lossless film end the name of the output in .mkv"
            raise InputError(f"{self.codec} has no crf {self.crf}", hint=hint)
        if self.preset not in PRESETS:
            raise InputError(f"no preset is called {self.preset}", hint=f"write one of {', '.join(PRESETS)}")

    def arguments(self) -> list[str]:
        """ffmpeg's output options."""
        preset = SVT_AV1_PRESETS[self.preset] if self.codec == "av1" else self.preset
        return [*ENCODERS[self.codec], "-preset", f"{preset}", "-crf", f"{self.crf}"]


def piece_arguments(encoding: Encoding | None) -> list[str]:
    """Output options of a piece of film, a fragmented MP4: bt709, converted and tagged; lossless RGB for None.

    Pieces of one encoding fit together whatever their lengths are: the same header, the same decoding delay.
    """
    if encoding is None:
        video, delay = ["-vf", TO_TAGGED_RGB, *LOSSLESS], 0
    else:
        video, delay = ["-vf", TO_BT709, *encoding.arguments()], DECODING_DELAYS[encoding.codec]
    timing = ["-threads", f"{ENCODER_THREADS}", "-bsf:v", f"setts=pts=PTS:dts=N-{delay}"]
    return [*video, *timing, "-movflags", "+empty_moov+default_base_moof+frag_keyframe", "-f", "mp4"]


def finish_arguments(kind: str) -> list[str]:
    """Output options that copy a fragmented MP4 into a film of `kind`, "mp4" with its index in front, or "mkv"."""
    # use_metadata_tags: without it an .mp4 keeps only the dozen keys that iTunes knows.
    options = ["-movflags", "+faststart+use_metadata_tags", "-f", "mp4"] if kind == "mp4" else ["-f", "matroska"]
    return ["-c", "copy", *options]


def encodes(encoder: Sequence[str]) -> bool:
    """Whether this ffmpeg writes a frame with the output options `encoder` (["-c:v", "libx264", ...]).

    Tried, not looked up: an encoder for hardware that is not there is listed all the same.
    """
    source = ["-f", "lavfi", "-i", "color=s=256x256:r=24:d=0.04"]
    trial = Process([*source, "-frames:v", "1", *encoder, "-f", "null", "-"])
    return trial.wait() == 0


def check_encoding(*, codec: str = "h264", crf: int = 17, preset: str = "medium") -> Encoding:
    """Find before a render whether ffmpeg can encode so: InputError for wrong values, MachineError for a lack."""
    encoding = Encoding(codec, crf, preset)
    if not encodes(encoding.arguments()):
        found = program()
        raise MachineError(f"ffmpeg {found.version} at {found.path} cannot encode {codec}", hint=INSTALL_HINT)
    return encoding


def available_encoders() -> tuple[str, ...]:
    """The codecs for .mp4, and "ffv1", that this machine's ffmpeg encodes; each is tried on one frame."""
    trials = {codec: Encoding(codec).arguments() for codec in CRF_RANGES} | {"ffv1": list(LOSSLESS)}
    return tuple(name for name, arguments in trials.items() if encodes(arguments))


@dataclass(frozen=True)
class VideoInfo:
    """The first video stream of a file as ffmpeg describes it.

    Attributes:
        width, height: coded size in pixels, before rotation.
        fps: average rate, two decimals as printed.
        duration: seconds, or None where the file does not tell.
        profile: such as "High", or None.
        pix_fmt: such as "yuv420p".
        color_range: "tv", "pc" or None; matrix, primaries and transfer are None if untagged.
    """

    width: int
    height: int
    fps: float
    duration: float | None
    codec: str
    profile: str | None
    pix_fmt: str
    color_range: str | None
    color_matrix: str | None
    color_primaries: str | None
    color_transfer: str | None

    @property
    def high_dynamic_range(self) -> bool:
        """Shown without tone mapping, such a clip looks flat and grey."""
        return self.color_transfer in ("smpte2084", "arib-std-b67")


STREAM_LINE = re.compile(r"^  Stream #0:\d+\S*: Video: (.*)$", re.MULTILINE)
TOP_LEVEL_COMMA = re.compile(r", (?![^(\[]*[)\]])")


def probe(path: str | os.PathLike) -> VideoInfo:
    """Describe the first video stream of the file at `path`. InputError if it has none, or cannot be read."""
    path = Path(path)
    if not path.is_file() or not os.access(path, os.R_OK):
        reason = "it is not readable" if path.is_file() else "there is no such file"
        raise InputError(f"cannot read the video {path}: {reason}", hint="check the path")
    command = [program().path, "-hide_banner", "-nostdin", "-i", file_argument(path)]
    result = subprocess.run(command, **_detached(), stdin=subprocess.DEVNULL, capture_output=True)
    text = result.stderr.decode(errors="replace").replace("\r\n", "\n")
    stream = STREAM_LINE.search(text)
    info = stream and _parse_stream(stream[1], _parse_duration(text))
    if not info:
        raise InputError(f"{path} holds no video that ffmpeg can read", hint="give an .mp4, .mkv, .mov or .webm film")
    return info


def _parse_duration(text: str) -> float | None:
    found = re.search(r"^  Duration: (\d+):(\d+):(\d+\.\d+)", text, re.MULTILINE)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _parse_stream(description: str, duration: float | None) -> VideoInfo | None:
    """Read `h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 64x48 [SAR 1:1 DAR 4:3], ...`."""
    fields = TOP_LEVEL_COMMA.split(description)
    codec = re.match(r"(\w+)(?: \((?!\w+ / 0x)([^)]*)\))*", fields[0])
    size = re.search(r", (\d+)x(\d+)[ ,]", description)
    if len(fields) < 3 or not codec or not size:
        return None
    pix_fmt, _, notes = fields[1].partition("(")
    color_range, *colors = _parse_colors(notes.rstrip(")").split(", "))
    rates = dict(reversed(pair) for pair in re.findall(r", ([\d.]+k?) (fps|tbr)\b", description))
    return VideoInfo(
        width=int(size[1]),
        height=int(size[2]),
        fps=_number(rates.get("fps") or rates.get("tbr", "0")),
        duration=duration,
        codec=codec[1],
        profile=codec[2],
        pix_fmt=pix_fmt,
        color_range=color_range,
        color_matrix=colors[0],
        color_primaries=colors[1],
        color_transfer=colors[2],
    )


def _parse_colors(notes: list[str]) -> tuple[str | None, ...]:
    """Range, matrix, primaries, transfer. ffmpeg prints one name where the last three are the same."""
    color_range = next((note for note in notes if note in ("tv", "pc")), None)
    for note in notes:
        names = note.split("/") if "/" in note else [note] * 3
        if len(names) == 3 and ("/" in note or note in ("bt709", "smpte170m", "smpte240m", "bt470bg")):
            return color_range, *(None if name == "unknown" else name for name in names)
    return color_range, None, None, None


def _number(text: str) -> float:
    return float(text[:-1]) * 1000 if text.endswith("k") else float(text)
