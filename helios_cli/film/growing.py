"""Keeps films on disk while they grow piece by piece: playable at any moment, and no part is written twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING

from helios_cli.errors import InputError, MachineError
from helios_cli.files import sync
from helios_cli.film import ffmpeg, mp4, reading, sound
from helios_cli.film.compression import DECODING_DELAYS, Encoding, piece_arguments
from helios_cli.film.disk import disk_errors, open_own, write_synced
from helios_cli.film.pieces import PNG_LEVEL, Encoder, PictureEncoder, VideoEncoder
from helios_cli.film.sound_pieces import SoundPieces
from helios_cli.film.target import FRAME_NAME, Target, holds_frames

if TYPE_CHECKING:
    from helios_cli.film.after import After

PIECE_VERSION = 1
"""Raise this with every change of helios that moves a byte of a piece."""

FINISHED = {
    # Index in front; without use_metadata_tags only the dozen keys that iTunes knows are stored.
    "mp4": ("-movflags", "+faststart+use_metadata_tags", "-f", "mp4"),
    # QuickTime's tags leave out the range, and an .mkv of helios is lossless RGB.
    "mkv": ("-color_range", "pc", "-f", "matroska"),
}
"""ffmpeg's output options that make a film of a fragmented MP4."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Mark:
    """The state of the growing film after a piece: the piece's frames, the film's length (bytes; pictures of a folder),
    the piece's SHA-256."""

    frames: int
    length: int
    digest: str


@dataclass(frozen=True)
class Chapter:
    """A stretch of the film that players show by its title."""

    title: str
    start_frame: int
    num_frames: int


class _Growing:
    """A film that grows.

    Attributes:
        name: the encoding of its pieces, for people.
        after: what comes after the render, or None.
        key: a digest of everything except the frames that decides a piece's bytes.
        length: as in Mark.
    """

    after: After | None = None

    def __init__(self, target: Target, name: str, preview: str, *settings: object) -> None:
        """`preview` is the hash of the decoder that makes the frames in place of the VAE, or ""."""
        self._target, self.name = target, f"{name}, preview" if preview else name
        decoder = [{"preview": preview}] if preview else []
        self.key = hashlib.sha256(json.dumps([PIECE_VERSION, *settings, *decoder]).encode()).hexdigest()[:16]
        self.length = self.num_frames = 0

    @property
    def num_final_frames(self) -> int:
        """The number of frames of the finished film."""
        return self.num_frames

    def piece_key(self, num_frames: int) -> str:
        """Return the key under which a cache has a piece of so many frames."""
        return f"{self.key}-{num_frames}"

    def complete(self) -> Generator[int, None, None]:
        """Make the frames of the finished film, if something comes after the growing one; yield how many are done."""
        yield from ()

    def finish(
        self, metadata: Mapping[str, str], chapters: Sequence[Chapter], track: sound.Track | None = None
    ) -> None:
        """Make the whole film with its sound, check it and sync it; `publish` then gives it its name.

        `complete` comes before. A folder of pictures is the film, and has no sound.
        """

    def discard(self) -> None:
        """Remove what `complete` and `finish` made."""


class GrowingFile(_Growing):
    """A fragmented MP4, lossless without `encoding`; `finish` copies its frames unchanged into the finished film.

    With something `after` it, it is lossless, and `complete` makes the finished film's frames out of it.
    """

    def __init__(
        self,
        target: Target,
        size: tuple[int, int],
        fps: float,
        encoding: Encoding | None,
        after: After | None = None,
        preview: str = "",
    ) -> None:
        self._rate, self._init = ffmpeg.frame_rate(fps), b""
        self.after, self._final_encoding = after, encoding
        self._made: IO[bytes] | None = None
        encoding = None if after else encoding
        self._delay = DECODING_DELAYS[encoding.codec] if encoding else 0
        self._options = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{size[0]}x{size[1]}"]
        self._options += ["-framerate", f"{self._rate}", "-i", "pipe:0", *ffmpeg.every_frame()]
        self._options += piece_arguments(encoding, self._rate)
        name = f"{encoding.codec} crf {encoding.crf} {encoding.preset}" if encoding else "lossless"
        super().__init__(target, name, preview, ffmpeg.program().version, *self._options)

    def encoder(self) -> Encoder:
        """Return an encoder of one piece."""
        return VideoEncoder(self._target, self._options)

    def begin(self) -> None:
        """Start empty, in place of whatever an earlier run left."""
        with disk_errors(self._target.partial):
            self._target.partial.unlink(missing_ok=True)
            write_synced(self._target.partial, b"")
            sync(self._target.path.parent)

    def verified(self, marks: Sequence[Mark]) -> int:
        """Return how many pieces of an earlier run are there and undamaged, counted from the first."""
        try:
            with disk_errors(self._target.partial, "read"), self._target.partial.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for count, mark in enumerate(marks):
                    start = file.tell()
                    if not start <= mark.length <= size or _digest(file.read(mark.length - start)) != mark.digest:
                        return count
        except FileNotFoundError:
            return 0
        return len(marks)

    def resume(self, marks: Sequence[Mark]) -> None:
        """Continue after these pieces; cut off what stands after them."""
        self.length, self.num_frames = marks[-1].length, sum(mark.frames for mark in marks)
        with disk_errors(self._target.partial), open_own(self._target.partial) as file:
            self._init, _ = mp4.split(file.read(marks[0].length))
            file.truncate(self.length)
            os.fsync(file.fileno())

    def sound_pieces(self, track: sound.Track, *, first: int = 0, num_frames: int | None = None) -> SoundPieces:
        """Return the sound of the pieces from frame `first` on, for a film of `num_frames` if that is known."""
        return SoundPieces(track, self._rate, self._delay, self._target.path.parent, first=first, num_frames=num_frames)

    def append(self, piece: bytes, num_frames: int) -> Mark:
        """Add a piece. It is on disk when this returns."""
        data = self.placed(piece, num_frames)
        with disk_errors(self._target.partial), open_own(self._target.partial) as file:
            file.seek(self.length)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.length += len(data)
        return Mark(num_frames, self.length, _digest(data))

    def placed(self, piece: bytes, num_frames: int) -> bytes:
        """Return the bytes of a piece at its place, behind all that were placed before."""
        init, fragments = mp4.split(piece)
        data = b"" if self._init else init
        self._init = self._init or init
        if init != self._init:
            raise MachineError(
                f"ffmpeg encoded two pieces of {self._target.path} in ways that do not fit together",
                hint="write an .mkv, which is lossless, or try another --codec",
            )
        ticks = self.num_frames * mp4.timescale(init) / self._rate
        for number, fragment in enumerate(fragments, self.num_frames + 1):
            mp4.move(fragment, ticks=int(ticks), number=number)
            data += fragment
        self.num_frames += num_frames
        return data

    @property
    def num_final_frames(self) -> int:
        """The number of frames of the finished film."""
        return self.after.num_frames(self.num_frames) if self.after else self.num_frames

    def complete(self) -> Generator[int, None, None]:
        if self.after is None or self._made is not None:
            return
        with disk_errors(self._target.partial):
            # `discard` or `publish` closes it.
            made = tempfile.TemporaryFile(buffering=0, dir=self._target.path.parent)  # noqa: SIM115
        try:
            yield from self.after.run(self._target.partial, self.num_frames, self._final_encoding, made)
        except BaseException:
            made.close()
            raise
        self._made = made

    def finish(
        self, metadata: Mapping[str, str], chapters: Sequence[Chapter], track: sound.Track | None = None
    ) -> None:
        partial, whole = self._target.partial, self._target.finishing
        with disk_errors(whole), tempfile.TemporaryFile("w+", encoding="utf-8", dir=whole.parent) as text:
            text.write(_ffmetadata(metadata, chapters, self._rate))
            text.seek(0)
            whole.unlink(missing_ok=True)  # ffmpeg would follow a link
            pictures, files = ffmpeg.file_argument(partial), [text.fileno()]
            if self._made is not None:
                self._made.seek(0)
                pictures, files = f"pipe:{self._made.fileno()}", [text.fileno(), self._made.fileno()]
            source = ["-i", pictures, "-f", "ffmetadata", "-i", f"pipe:{text.fileno()}"]
            copied = ["-map", "0:v", "-c:v", "copy", "-map_metadata", "1", "-map_chapters", "1"]
            written = [*FINISHED[self._target.kind], "-y", ffmpeg.file_argument(whole)]
            num_samples = sound.samples_of(self.num_final_frames, self.after.made.rate if self.after else self._rate)
            with sound.under_film(track, num_samples, self._target) as (audio, encoded):
                ffmpeg.Process(
                    [*source, *audio, *copied, *encoded, *written],
                    doing=f"writing {self._target.path}",
                    pass_fds=files,
                ).complete()
            try:
                count = reading.num_frames(whole, "-c", "copy")
            except InputError as error:
                raise MachineError(f"{self._target.path} was not written completely: {error.message}") from error
            if count != self.num_final_frames:
                raise MachineError(f"{self._target.path} received {count} of {self.num_final_frames} frames")
            if reading.probe(whole).primaries != "bt709":
                raise MachineError(f"{self._target.path} lost its colour tags", hint=ffmpeg.INSTALL_HINT)
            if track is not None:
                sound.check_length(whole, num_samples)
            sync(whole)

    def publish(self) -> None:
        with _naming(self._target, self._target.finishing):
            os.replace(self._target.finishing, self._target.path)
        if self._made is not None:
            self._made.close()

    def discard(self) -> None:
        if self._made is not None:
            self._made.close()
        self._target.finishing.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the growing film."""
        self._target.partial.unlink(missing_ok=True)


class GrowingFolder(_Growing):
    """A folder of `frame_000001.png` and so on."""

    def __init__(self, target: Target, preview: str = "") -> None:
        super().__init__(target, "PNG", preview, "png", PNG_LEVEL)

    def encoder(self) -> Encoder:
        return PictureEncoder()

    def begin(self) -> None:
        with disk_errors(self._target.partial):
            if self._target.partial.exists():
                shutil.rmtree(self._target.partial)
            self._target.partial.mkdir()
            sync(self._target.path.parent)

    def verified(self, marks: Sequence[Mark]) -> int:
        for count, mark in enumerate(marks):
            try:
                with disk_errors(self._target.partial, "read"):
                    pictures = [self._frame(mark.length - mark.frames + i).read_bytes() for i in range(mark.frames)]
            except FileNotFoundError:
                return count
            if _digest(*pictures) != mark.digest:
                return count
        return len(marks)

    def resume(self, marks: Sequence[Mark]) -> None:
        self.length = self.num_frames = marks[-1].length
        with disk_errors(self._target.partial):
            for name in filter(FRAME_NAME.fullmatch, os.listdir(self._target.partial)):
                if int(name.removeprefix("frame_").removesuffix(".png")) > self.num_frames:
                    (self._target.partial / name).unlink()

    def append(self, piece: bytes, num_frames: int) -> Mark:
        pictures = [PNG_SIGNATURE + picture for picture in piece.split(PNG_SIGNATURE)[1:]]
        for index, picture in zip(range(self.num_frames, self.num_frames + num_frames), pictures, strict=True):
            with disk_errors(self._frame(index)):
                write_synced(self._frame(index), picture)
        with disk_errors(self._target.partial):
            sync(self._target.partial)
        self.length = self.num_frames = self.num_frames + num_frames
        return Mark(num_frames, self.length, _digest(*pictures))

    def publish(self) -> None:
        place, old = self._target.path, self._target.path.with_name(f".old-{secrets.token_hex(5)}")
        with _naming(self._target, self._target.partial):
            holds_frames(place)
            if place.exists():  # even an empty one may hold files of other programs, and could not be replaced
                os.rename(place, old)
            try:
                os.rename(self._target.partial, place)
            except BaseException:
                if old.exists():
                    os.rename(old, place)
                raise
        shutil.rmtree(old, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self._target.partial, ignore_errors=True)

    def _frame(self, index: int) -> Path:
        return self._target.partial / f"frame_{index + 1:06d}.png"


GrowingFilm = GrowingFile | GrowingFolder


def growing_film(
    target: Target,
    size: tuple[int, int],
    fps: float,
    encoding: Encoding,
    *,
    after: After | None = None,
    lossless: bool = False,
    preview: str = "",
) -> GrowingFilm:
    """Return a film at `target` of `size` (width, height) pixels, still without frames; nothing is written.

    `after` is what comes after the render of a file; `lossless` films are those of which another process does that.
    `encoding` applies to .mp4 only. `preview` is the hash of a decoder in the VAE's place. Raises InputError for what
    cannot be written.
    """
    if not 1 <= fps <= 1000:
        raise InputError(f"{fps} frames per second cannot be written", hint="write a rate from 1 to 1000")
    if target.kind == "mp4" and (size[0] % 2 or size[1] % 2):
        raise InputError(f"an .mp4 cannot be {size[0]}x{size[1]}: both must be even", hint="write an even --size")
    if target.kind == "png":
        return GrowingFolder(target, preview)
    return GrowingFile(target, size, fps, encoding if target.kind == "mp4" and not lossless else None, after, preview)


@contextlib.contextmanager
def _naming(target: Target, whole: Path) -> Iterator[None]:
    """Report where the whole film is if it cannot take its name."""
    try:
        yield
        sync(target.path.parent)
    except (OSError, InputError) as error:
        raise MachineError(
            f"the film is complete but could not be named {target.path}: {error}",
            hint=f"run `mv {shlex.quote(str(whole))} {shlex.quote(str(target.path))}`",
        ) from error


def _digest(*data: bytes) -> str:
    return hashlib.sha256(b"".join(data)).hexdigest()


def _ffmetadata(metadata: Mapping[str, str], chapters: Sequence[Chapter], rate: Fraction) -> str:
    """Return metadata as ffmpeg reads it from a file: arguments are limited to 128 KiB, and any user sees those."""
    lines = [f"{_escape(key)}={_escape(value)}\n" for key, value in metadata.items()]
    for chapter in chapters:
        end = chapter.start_frame + chapter.num_frames
        lines.append(f"[CHAPTER]\nTIMEBASE={rate.denominator}/{rate.numerator}\n")
        lines.append(f"START={chapter.start_frame}\nEND={end}\ntitle={_escape(chapter.title)}\n")
    return ";FFMETADATA1\n" + "".join(lines)


def _escape(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)
