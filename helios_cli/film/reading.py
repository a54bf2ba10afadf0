"""Reads untrusted films and clips with ffmpeg, within limits on what may be opened, its size, and the time it takes.

A file is opened as a film that is complete in itself: formats that name other files, such as playlists and numbered
pictures, are not on the list, and neither are protocols other than files. imageio-ffmpeg bundles no ffprobe, so `probe`
parses the description that ffmpeg prints.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from helios_cli.errors import InputError
from helios_cli.film import ffmpeg

DEMUXERS = (
    "apng,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,"
    "vc1,webp_anim,yuv4mpegpipe"
)
MAX_SIDE = 16384
MAX_PIXELS = 36_000_000
"""Pixels of a frame: 8K and somewhat more."""

MAX_GAP_SECONDS = 60
MAX_HOURS = 4
"""Limits on a clip that is continued: it is resampled to the film's rate, gaps included."""

MAX_TEXT_BYTES = 4 * 2**20
"""Largest metadata of a film file: four times the largest source."""

PROBE_SECONDS = 60
THREADS = 4

DECODER_BYTES = 100_000_000
FRAMES_HELD = 24
"""Most frames that a decoder refers to, and that are on their way through filters."""

UNUSED_BYTES = 400_000_000
"""Added to ffmpeg's memory limit for thread stacks and the like, which are reserved and hardly touched."""


@dataclass(frozen=True)
class VideoInfo:
    """The first video stream of a file as ffmpeg describes it.

    Attributes:
        width, height: coded size in pixels, before rotation.
        aspect: width over height as shown, before rotation.
        fps: average rate with two decimals.
        duration: seconds, or None if the file does not say.
        pix_fmt: such as "yuv420p".
        matrix, primaries, transfer: of the colours, such as "bt709"; None or "unknown" if untagged.
    """

    width: int
    height: int
    aspect: float
    fps: float
    duration: float | None
    pix_fmt: str
    matrix: str | None
    primaries: str | None
    transfer: str | None

    @property
    def decoder_bytes(self) -> int:
        """The most memory that decoding takes."""
        samples = 1.5 if "420" in self.pix_fmt or self.pix_fmt.startswith(("nv", "p0")) else 4
        depth = 2 if re.search(r"(9|1[0246]|48|64)[lb]e$", self.pix_fmt) else 4 if "f32" in self.pix_fmt else 1
        return DECODER_BYTES + int(FRAMES_HELD * samples * depth * self.width * self.height)

    @property
    def high_dynamic_range(self) -> bool:
        """True if the clip looks flat and grey without tone mapping."""
        return self.transfer in ("smpte2084", "arib-std-b67")


STREAM_LINE = re.compile(r"^  Stream #0:\d+\S*: Video: (.*)$", re.MULTILINE)
DESCRIPTION = re.compile(r"  Duration: |  Stream #0:|.*Estimating duration from bitrate|.*Picture size \d")
TOP_LEVEL_COMMA = re.compile(r", (?![^(\[]*[)\]])")


def _source(path: str | os.PathLike) -> list[str]:
    """Return ffmpeg's options that open the file at `path` within limits."""
    opening = ["-protocol_whitelist", "file", "-format_whitelist", DEMUXERS]
    return [*opening, "-threads", f"{THREADS}", "-max_pixels", f"{MAX_PIXELS}", "-i", ffmpeg.file_argument(path)]


def decoder(path: str | os.PathLike, *output: str) -> ffmpeg.Process:
    """Run an ffmpeg that writes `output`, made of the file's first video stream, to its stdout; use it in a block."""
    return _reader(path, probe(path).decoder_bytes, "-map", "0:v:0", *output)


def _reader(path: str | os.PathLike, memory: int, *output: str) -> ffmpeg.Process:
    return ffmpeg.Process(
        ["-filter_threads", f"{THREADS}", *_source(path), *output, "pipe:1"],
        doing=f"reading {os.fspath(path)}",
        blame=InputError,
        stdout=subprocess.PIPE,
        memory=memory + UNUSED_BYTES,
    )


def num_frames(path: str | os.PathLike, *output: str) -> int:
    """Count the frames that ffmpeg makes of the file with the output options `output`. InputError if it fails."""
    with decoder(path, *output, "-f", "framecrc", "-flush_packets", "1") as listing:
        count = sum(line[:1] != b"#" for line in listing.stdout)
        if listing.wait():
            raise undecodable(path, listing)
    return count


def undecodable(path: str | os.PathLike, process: ffmpeg.Process) -> InputError:
    message = f"the video {path} cannot be decoded: {process.messages() or 'no message'}"
    return InputError(message, hint="convert it, for example to .mp4, or give another one")


def probe(path: str | os.PathLike) -> VideoInfo:
    """Describe the first video stream of the file at `path`. InputError if it has none, cannot be read, or has frames
    that are too large."""
    try:
        status = os.stat(path)
        reason = "it is not readable" if stat.S_ISREG(status.st_mode) else "it is not a file"
        if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
            return _probed(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        reason = "there is no such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InputError(f"cannot read the video {path}: {reason}", hint="check the path")


@lru_cache
def _probed(path: str, size: int, mtime_ns: int) -> VideoInfo:
    described = ffmpeg.Process(
        ["-loglevel", "info", *_source(path)],
        doing=f"reading {path}",
        blame=InputError,
        memory=FRAMES_HELD * MAX_PIXELS + UNUSED_BYTES,
        keep=DESCRIPTION,
    )
    described.wait(PROBE_SECONDS)
    text = "\n".join(described.kept)
    info = _parse(text)
    refused = re.search(r"Picture size (\d+)x(\d+) (?:exceeds|is invalid)", text)
    if not info and refused:
        raise _too_large(path, int(refused[1]), int(refused[2]))
    if not info:
        raise InputError(f"{path} holds no video that ffmpeg can read", hint="give an .mp4, .mkv, .mov or .webm film")
    if max(info.width, info.height) > MAX_SIDE or info.width * info.height > MAX_PIXELS:
        raise _too_large(path, info.width, info.height)
    return info


def _too_large(path: str, width: int, height: int) -> InputError:
    hint = f"scale it to at most {MAX_PIXELS // 10**6} megapixels, {MAX_SIDE} pixels a side"
    return InputError(f"the frames of {path} are too large, {width}x{height}", hint=hint)


def metadata(path: str | os.PathLike) -> dict[str, str] | None:
    """Return the file's own metadata, keys in lower case, as Matroska ignores case; None if it is larger than
    MAX_TEXT_BYTES as ffmpeg writes it."""
    with _reader(path, DECODER_BYTES, "-f", "ffmetadata") as reader:
        data = reader.stdout.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        return None
    values: dict[str, str] = {}
    text = data.decode("utf-8", "replace")
    for key, value in re.findall(r"^(?:((?:\\.|[^\\=\n])+)=((?:\\[\s\S]|[^\\\n])*)|\[.*)$", text, re.MULTILINE):
        if not key:  # a stream or a chapter begins
            break
        values[key.lower()] = re.sub(r"\\([\s\S])", r"\1", value)
    return values


@dataclass(frozen=True)
class Extent:
    """The length of a clip: the `seconds` that are there, and the `nominal` ones of its header, if it has them."""

    seconds: float
    nominal: float | None

    @property
    def cut_short(self) -> str | None:
        """The two lengths in words, if more is missing than a last frame without a length, or rounding, explains."""
        if self.nominal is None or self.nominal - self.seconds <= max(1, self.nominal / 20):
            return None
        return f"is cut short: only {self.seconds:.1f} s of {self.nominal:.1f} s are there"


def extent(path: str | os.PathLike) -> Extent:
    """Read through the file at `path` without decoding it. InputError if it cannot be continued because of a gap
    without frames or its length."""
    status = os.stat(path)
    return _extent(os.path.abspath(path), status.st_size, status.st_mtime_ns)


@lru_cache
def _extent(path: str, size: int, mtime_ns: int) -> Extent:
    packets = ["-map", "0:a?", "-copyinkf", "-c", "copy", "-f", "framecrc", "-flush_packets", "1"]
    begin, end, last_frame = 0.0, 0.0, None
    with decoder(path, *packets) as listing:
        for stream, decoded, shown, length in _packets(listing.stdout):
            if stream == 0:
                if last_frame is not None and decoded - last_frame > MAX_GAP_SECONDS:
                    raise InputError(
                        f"the video {path} has no frame for {decoded - last_frame:,.0f} s after {last_frame:,.0f} s; "
                        f"gaps of at most {MAX_GAP_SECONDS} s are allowed",
                        hint="cut the clip there, and give one of the parts",
                    )
                last_frame = decoded
            begin, end = min(begin, shown), max(end, shown + length)
            if end - begin > MAX_HOURS * 3600:
                raise InputError(
                    f"the video {path} is longer than {MAX_HOURS} hours",
                    hint=f"give its end alone: ffmpeg -sseof -60 -i {shlex.quote(path)} -c copy end.mkv",
                )
    return Extent(end - begin, probe(path).duration)


def sound_end(path: str | os.PathLike) -> float:
    """Return the time in seconds at which the first sound stream of the file at `path` ends; 0 without one."""
    packets = ["-map", "0:a:0?", "-c", "copy", "-f", "framecrc", "-flush_packets", "1"]
    with _reader(path, DECODER_BYTES, *packets) as listing:
        return max((shown + length for _, _, shown, length in _packets(listing.stdout)), default=0.0)


def _packets(lines: Iterable[bytes]) -> Iterator[tuple[int, float, float, float]]:
    """Yield stream, times of decoding and of display, and length in seconds, from lines of `#tb 0: 1/24` and
    `0, -1, 0, 1, 5130, 0x4158ab53`."""
    units: dict[int, Fraction] = {}
    for line in lines:
        if head := re.match(rb"#tb (\d+): (\d+)/(\d+)", line):
            units[int(head[1])] = Fraction(int(head[2]), int(head[3]))
        elif row := re.match(rb"(\d+), *(-?\d+), *(-?\d+), *(\d+),", line):
            stream, decoded, shown, length = map(int, row.groups())
            unit = units[stream]
            yield stream, float(decoded * unit), float(shown * unit), float(length * unit)


def stated_seconds(text: str) -> float | None:
    """Return the length in ffmpeg's description of a file; None if the file does not state it."""
    clock = re.search(r"^  Duration: (\d+):(\d+):(\d+\.\d+)", text, re.MULTILINE)
    if clock is None or "Estimating duration" in text:
        return None
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])


def _parse(text: str) -> VideoInfo | None:
    """Parse ffmpeg's description of a file, whose line about the stream is
    `h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 64x48 [SAR 1:1 DAR 4:3], ...`."""
    stream = STREAM_LINE.search(text)
    description = stream[1] if stream else ""
    fields = TOP_LEVEL_COMMA.split(description)
    size = re.search(r", (\d+)x(\d+)[ ,]", description)
    if len(fields) < 3 or not size:
        return None
    aspect = re.search(r" DAR (\d+):(\d+)", description) or size
    pix_fmt, _, notes = fields[1].partition("(")
    # Matrix/primaries/transfer, or one name if they are the same.
    colors = re.search(r"([\w-]+)/([\w-]+)/([\w-]+)|\b(bt709|smpte170m|smpte240m|bt470bg)\b", notes)
    rates = re.findall(r", ([\d.]+)(k?) (fps|tbr)\b", description)  # average, and guessed
    number, thousands, _ = min(rates, key=lambda rate: rate[2], default=("0", "", ""))
    return VideoInfo(
        width=int(size[1]),
        height=int(size[2]),
        aspect=int(aspect[1]) / max(1, int(aspect[2])),
        fps=float(number) * (1000 if thousands else 1),
        duration=stated_seconds(text),
        pix_fmt=pix_fmt,
        matrix=colors and (colors[1] or colors[4]),
        primaries=colors and (colors[2] or colors[4]),
        transfer=colors and (colors[3] or colors[4]),
    )
