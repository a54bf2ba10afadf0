"""Reads the sound file of a film through before it renders, and puts it under the finished picture.

A file is read within the limits of `film.reading`: no format that names other files, no protocol other than files.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from helios_cli.errors import InputError, MachineError
from helios_cli.files import sha256_of
from helios_cli.film import ffmpeg
from helios_cli.film.reading import sound_end, stated_seconds
from helios_cli.film.target import Target
from helios_cli.recipe.sound import Sound
from helios_cli.visible import printable

DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nut,ogg,tta,"
    "voc,w64,wav,wv"
)
SAMPLE_RATE = 48_000
MAX_HOURS = 24
"""Longest sound: as long as the longest film."""

LEAST_PEAK_DB = -90.0
"""Lowest peak that counts as sound: the last bit of 16."""

MEMORY_BYTES = 1_000_000_000
LEAST_SILENCE_SECONDS = 0.1
"""Silence that is noticed; encoders shorten a sound by less."""

LONGEST_PACKET_SECONDS = 0.1
"""One of FLAC; a container may state a length by whole packets."""

BOTH_SIDES = "pan=stereo|c0=c0|c1=c0,"
"""Puts one channel on both sides at its own level; left to itself ffmpeg takes 3 dB off."""

# The limit on the mix keeps 5.1 from being louder than full scale; samples are counted, whatever their timestamps say.
STEREO = (
    f"aresample={SAMPLE_RATE}:rematrix_maxval=1,"
    f"aformat=sample_fmts=fltp:sample_rates={SAMPLE_RATE}:channel_layouts=stereo,asetpts=N/SR/TB"
)
LOSSLESS = ("-c:a", "flac", "-sample_fmt", "s32", "-bits_per_raw_sample", "24")
ENCODERS = {"mp4": ("-c:a", "aac", "-b:a", "192k"), "mkv": LOSSLESS}
"""ffmpeg's output options for the sound of each kind of film."""

PLAYLISTS = (".m3u", ".m3u8", ".pls", ".cue", ".xspf", ".asx", ".mpd", ".ffconcat", ".sdp", ".ram", ".wpl")


@dataclass(frozen=True)
class Track:
    """A sound file that was read through: its SHA-256, its length in samples at SAMPLE_RATE, and whether it is mono."""

    sound: Sound
    digest: str
    num_samples: int
    is_mono: bool

    @property
    def stereo(self) -> str:
        """ffmpeg's filters that make it stereo at SAMPLE_RATE."""
        return f"{BOTH_SIDES}{STEREO}" if self.is_mono else STEREO

    @property
    def seconds(self) -> float:
        return self.num_samples / SAMPLE_RATE

    def check_unchanged(self) -> None:
        """Raise InputError if the file is another one now than it was when it was read through."""
        try:
            is_same = sha256_of(self.sound.path) == self.digest
        except OSError:
            is_same = False
        if not is_same:
            raise InputError(
                f"the sound {_shown(self.sound.path)} changed while the film was rendered",
                hint="run the same command again: it checks the sound anew, and renders no finished chunk twice",
            )


def track_of(sound: Sound | None) -> Track | None:
    """Return the track of a film's sound, None without one. A file is read through once while it stays as it is."""
    return open_track(sound) if sound else None


def silence_notice(track: Track, film_seconds: float) -> str | None:
    """Return a notice if silence follows the sound in a film of so many seconds. InputError if it is to be kept whole
    and is longer."""
    sound, shown = track.sound, _shown(track.sound.path)
    lengths = f"{track.seconds:,.2f} s long, and the film {film_seconds:,.2f} s"
    difference = film_seconds - track.seconds
    if sound.fit == "pad" and difference < -1 / SAMPLE_RATE:
        hint = "write --audio-fit trim to cut it, or make the film longer"
        raise InputError(f"the sound {shown} is {lengths}: pad keeps it whole", hint=hint)
    if sound.fit == "trim" and difference >= LEAST_SILENCE_SECONDS:
        return f"the sound {shown} is {lengths}: silence follows it (--audio-fit loop repeats it)"
    return None


def samples_of(num_frames: int, rate: Fraction) -> int:
    """Return how many samples a film of so many frames takes."""
    return round(num_frames * SAMPLE_RATE / rate)


@contextmanager
def under_film(track: Track | None, num_samples: int, target: Target) -> Iterator[tuple[list[str], list[str]]]:
    """Provide ffmpeg's input options of the sound, for a film at `target` that has two inputs before it, and the output
    options that encode `num_samples` of it; none without a track.

    InputError if the file is another one than was read through, even if it is replaced during the block.
    """
    if track is None:
        yield [], []
        return
    with fitted(track, num_samples, target.looped) as (source, filters):
        graph = ["-filter_complex", f"[2:a:0]{','.join(filters)}[sound]", "-map", "[sound]"]
        yield source, [*graph, *ENCODERS[target.kind]]


@contextmanager
def fitted(track: Track, num_samples: int | None, looped: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Provide ffmpeg's input options of the sound, and the filters that fit it to a film of `num_samples`; None for a
    film that may always become longer: its sound has no end. What is repeated is at `looped` during the block.

    InputError if the file is another one than was read through, even if it is replaced during the block.
    """
    track.check_unchanged()
    is_repeated = track.sound.fit == "loop" and (num_samples is None or track.num_samples < num_samples)
    source = _source(track.sound.path)
    try:
        if is_repeated:  # of a lossless file: others begin again with a gap, or not at all
            looped.unlink(missing_ok=True)  # ffmpeg would follow a link
            output = ["-map", "0:a:0", "-af", track.stereo, *LOSSLESS, "-y", ffmpeg.file_argument(looped)]
            ffmpeg.Process([*source, *output], doing=f"writing {looped}").complete()
            source = ["-stream_loop", "-1", "-i", ffmpeg.file_argument(looped)]
        filters = [STEREO if is_repeated else track.stereo]
        if not is_repeated:  # a repeated sound gets no silence after it: `check_length` sees if it ends early
            filters.append("apad" if num_samples is None else f"apad=whole_len={num_samples}")
        if num_samples is not None:
            filters.append(f"atrim=end_sample={num_samples}")
            faded = min(round(track.sound.fade * SAMPLE_RATE), num_samples)
            if faded and (is_repeated or track.num_samples > num_samples):
                filters.append(f"afade=t=out:start_sample={num_samples - faded}:nb_samples={faded}")
        yield source, filters
        track.check_unchanged()
    finally:
        looped.unlink(missing_ok=True)


def check_length(film: Path, num_samples: int) -> None:
    """Raise MachineError unless the sound of a film ends where it should, give or take a packet."""
    end, wanted = sound_end(film), num_samples / SAMPLE_RATE
    if abs(end - wanted) > LONGEST_PACKET_SECONDS:
        raise MachineError(f"the sound of {film} is {end:.2f} s long, not {wanted:.2f} s", hint=ffmpeg.INSTALL_HINT)


def _source(path: Path) -> list[str]:
    return ["-protocol_whitelist", "file", "-format_whitelist", DEMUXERS, "-vn", "-i", ffmpeg.file_argument(path)]


def open_track(sound: Sound) -> Track:
    """Read a sound file through. InputError if it is absent, damaged, silent, or holds no sound."""
    path = sound.path
    if path.suffix.lower() in PLAYLISTS:
        raise InputError(f"{_shown(path)} names other files, and is not read", hint="name the sound file itself")
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{_shown(path)} is not a file")
        found = _read_through(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"the sound {_shown(path)} cannot be read: {reason}", hint="check the path") from error
    return Track(sound, *found)


MEASURES = "astats=measure_perchannel=none:measure_overall=Peak_level+Number_of_samples+Number_of_NaNs+Number_of_Infs"
FAULT = re.compile(
    r".*(Error (during demuxing|submitting packet to decoder|while decoding)|Decoding error|CRC mismatch|partial file|"
    r"corrupt input packet)"
)
KEPT = re.compile(
    rf"Input #0, |  Duration: |  Stream #0:|.*(Estimating duration from bitrate|Parsed_astats)|{FAULT.pattern}"
)
SLACK_SECONDS = 0.03
"""Rounding of the length in a header, as ffmpeg prints it: what is missing beyond it are lost samples."""

_EXACT = re.compile(r"Input #0, (flac|wav|aiff|w64|tta|wv|ape),")
"""Formats whose headers count samples; others may be off, and older versions of ffmpeg say nothing of a hole."""

MOST_PEAK_DB = 60.0


@lru_cache
def _read_through(path: Path, inode: int, size: int, mtime_ns: int) -> tuple[str, int, bool]:
    """Return the digest of a file, its length, and whether it is mono; see `Track`. The other parameters say for which
    state of the file the answer is kept."""
    _require_encoders()
    limit = ["-t", f"{MAX_HOURS * 3600 + 1}", *_source(path)]
    reader = _process(
        ["-loglevel", "info", *limit, "-map", "0:a:0", "-af", f"{STEREO},{MEASURES}", "-f", "null", "-"], path
    )
    status = reader.wait()
    lines = list(reader.kept)
    streams = [line for line in lines if line.startswith("  Stream #0:") and ": Audio: " in line]
    if not streams:
        raise InputError(
            f"{_shown(path)} holds no sound that ffmpeg can read", hint="give a .wav, .flac, .mp3, .m4a or .ogg file"
        )
    measured = {match[1]: float(match[2]) for line in lines if (match := _MEASURE.search(line))}
    num_samples = int(measured.get("Number of samples", 0))
    whole = _seconds_in_header(lines)
    fault = next((line for line in lines if FAULT.match(line)), None)
    # Tags and the like after the last sample are no sound, and no fault.
    if fault and whole is not None and num_samples / SAMPLE_RATE >= whole - SLACK_SECONDS:
        fault = None
    short = _cut_short(num_samples / SAMPLE_RATE, whole, is_exact=any(map(_EXACT.match, lines)))
    if status or fault or short:
        message = (not fault and short) or f"is damaged: {_SPEAKER.sub('', fault or reader.messages() or 'no message')}"
        hint = f"use a complete copy; or keep what there is: ffmpeg -i {shlex.quote(str(path))} repaired.flac"
        raise InputError(f"the sound {_shown(path)} {message}", hint=hint)
    if num_samples > MAX_HOURS * 3600 * SAMPLE_RATE:
        raise InputError(f"the sound {_shown(path)} is longer than {MAX_HOURS} hours", hint="cut it")
    peak = measured["Peak level dB"]
    if measured["Number of NaNs"] or measured["Number of Infs"] or peak > MOST_PEAK_DB:
        raise InputError(f"the sound {_shown(path)} has samples that are not numbers, or far too large")
    if not num_samples or peak < LEAST_PEAK_DB:
        loudest = f"its peak is {peak:.0f} dB" if math.isfinite(peak) else "all its samples are zero"
        raise InputError(f"the sound {_shown(path)} is silent: {loudest}", hint="leave it out, or name another file")
    digest = sha256_of(path)
    after = os.stat(path)
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (inode, size, mtime_ns):
        raise InputError(f"the sound {_shown(path)} is being written", hint="wait until it is whole")
    return digest, num_samples, bool(re.search(r", mono[, ]", streams[0]))


_SPEAKER = re.compile(r"^(\[[^]]*\] *)+")
_MEASURE = re.compile(r"\] (Peak level dB|Number of \w+): (\S+)$")


def _cut_short(seconds: float, whole: float | None, *, is_exact: bool) -> str | None:
    """Return the two lengths in words if the file lacks more than its header may be off."""
    if whole is None or whole - seconds <= (SLACK_SECONDS if is_exact else max(1, whole / 20)):
        return None
    return f"is cut short, or has a hole: only {seconds:.2f} s of {whole:.2f} s are there"


def _seconds_in_header(lines: list[str]) -> float | None:
    """Return the length that the file states, if it is that of its sound: a video's may be longer."""
    has_video = any("Video: " in line and "(attached pic)" not in line for line in lines)
    return None if has_video else stated_seconds("\n".join(lines))


@lru_cache
def _require_encoders() -> None:
    """Raise MachineError if ffmpeg lacks what sound takes. It tries, as an encoder may be listed and not work."""
    fitted = "apad=whole_len=9600,atrim=end_sample=9600,afade=t=out:start_sample=1:nb_samples=9"
    for kind, encoder in ENCODERS.items():
        source = ["-f", "lavfi", "-i", "anullsrc=r=44100:cl=mono,atrim=end_sample=4410"]
        filters = f"{BOTH_SIDES}{STEREO},{fitted},{MEASURES}"
        trial = ffmpeg.Process([*source, "-af", filters, *encoder, "-f", "null", "-"], doing="trying an encoder")
        if trial.wait():
            program = ffmpeg.program()
            message = f"ffmpeg {program.version} at {program.path} cannot write the sound of an .{kind}"
            raise MachineError(f"{message}: {trial.messages()}", hint=ffmpeg.INSTALL_HINT)


def _process(arguments: list[str], path: Path) -> ffmpeg.Process:
    doing = f"reading {_shown(path)}"
    return ffmpeg.Process(arguments, doing=doing, blame=InputError, memory=MEMORY_BYTES, keep=KEPT)


def _shown(path: Path) -> str:
    return printable(str(path), 200)
