"""The sound of a film that grows: AAC in fragments of MP4, which play together with those of its pictures."""

from __future__ import annotations

import struct
import subprocess
import tempfile
import threading
from fractions import Fraction
from pathlib import Path

from helios_cli.errors import MachineError
from helios_cli.film import ffmpeg, mp4, sound
from helios_cli.film.sound import Track

FRAGMENT_MICROSECONDS = 100_000
PRIMING_SAMPLES = 1024
"""A packet, which AAC decodes in front of the sound."""


class SoundPieces:
    """The sound of a film of `rate` pictures a second. The encoder is held back by its pipe until more is wanted.

    It has no end, unless the film is known to have `num_frames`, and begins with frame `first`, for a film that goes
    on. `delay` is the time of the film's first picture, in frames. What is repeated is in `folder` while it begins.

    InputError if the file is another one than was read through.
    """

    def __init__(
        self, track: Track, rate: Fraction, delay: int, folder: Path, *, first: int = 0, num_frames: int | None = None
    ) -> None:
        num_samples = None if num_frames is None else sound.samples_of(num_frames, rate)
        shift = sound.samples_of(delay + first, rate) - PRIMING_SAMPLES
        start = sound.samples_of(first, rate) + max(0, -shift)  # no time is before 0: the first packet is left out
        self._rate, self._delay, self._shift = rate, delay, max(0, shift)
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            sound.fitted(track, num_samples, Path(place, "looped.flac")) as (source, filters),
        ):
            filters = [*filters, f"atrim=start_sample={start}", "asetpts=N/SR/TB"]
            encoded = ["-map", "0:a:0", "-af", ",".join(filters), *sound.ENCODERS["mp4"]]
            cut = ["-movflags", "+empty_moov+default_base_moof", "-frag_duration", f"{FRAGMENT_MICROSECONDS}"]
            self._ffmpeg = ffmpeg.Process(
                [*source, *encoded, *cut, "-flush_packets", "1", "-f", "mp4", "pipe:1"],
                doing=f"reading {track.sound.path}",
                stdout=subprocess.PIPE,
            )
            self._init = self._box() + self._box()
        self._number = 0
        self._next = self._fragment()
        self._reading = threading.Lock()

    def joined(self, piece: bytes, num_frames: int) -> bytes:
        """Return a piece of the film, the first one with its init segment, with its sound: up to that many frames of
        the film."""
        init, fragments = mp4.split(piece)
        head = self.under(init) if init else b""
        return head + b"".join(fragments) + self.until(num_frames)

    def under(self, init: bytes) -> bytes:
        """Return the film's init segment with that of the sound."""
        return mp4.with_second_track(init, self._init)

    def until(self, num_frames: int) -> bytes:
        """Return the fragments, after those of the last call, that are heard before the end of the last frame."""
        end, data = sound.samples_of(self._delay + num_frames, self._rate), b""
        with self._reading:
            while self._next and mp4.start_of(self._next) < end:
                data += self._next
                self._next = self._fragment()
        return data

    def close(self) -> None:
        """End the encoder; nothing comes any more. May be called twice."""
        with self._reading:
            self._ffmpeg.kill()
            self._next = b""

    def _fragment(self) -> bytes:
        """Read the next fragment; b"" at the end of the sound."""
        if not (head := self._box()):
            return b""
        if head[4:8] == b"mfra":  # an index, at the end
            return b""
        fragment = bytearray(head + self._box())
        self._number += 1
        mp4.move(fragment, ticks=self._shift, number=self._number)
        mp4.as_second_track(fragment)
        return bytes(fragment)

    def _box(self) -> bytes:
        """Read a box; b"" at the end of a whole file."""
        head = self._ffmpeg.stdout.read(8)
        if not head:
            if status := self._ffmpeg.wait():
                raise self._ffmpeg.failure(status)
            return b""
        rest = struct.unpack(">I", head[:4])[0] - 8 if len(head) == 8 else 0
        content = self._ffmpeg.stdout.read(rest)
        if not 0 < len(content) == rest:
            raise MachineError(f"ffmpeg stopped while {self._ffmpeg.doing}", hint=ffmpeg.INSTALL_HINT)
        return head + content
