"""A film on disk while it grows, piece by piece: what is there can be played, and none of it is written again."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import secrets
import shlex
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from helios_cli.errors import InputError, MachineError
from helios_cli.files import sync
from helios_cli.film import ffmpeg, matroska, mp4, reading
from helios_cli.film.disk import disk_errors, open_own, write_synced
from helios_cli.film.target import FRAME_NAME, Target, holds_frames

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEAD = 33
"""Bytes of the signature and of the IHDR chunk, after which other chunks may stand."""


@dataclass(frozen=True)
class Mark:
    """The growing film after a piece: its frames, its length (bytes; pictures of a folder), the piece's SHA-256."""

    frames: int
    length: int
    digest: str


@dataclass(frozen=True)
class Chapter:
    """A stretch of the film that players show by its title."""

    title: str
    start_frame: int
    num_frames: int


class GrowingFilm(Protocol):
    """A film in the making. `length` as in Mark."""

    length: int
    num_frames: int

    def begin(self) -> None:
        """Start empty, in the place of whatever an earlier run left."""

    def verified(self, marks: Sequence[Mark]) -> int:
        """How many of the pieces that an earlier run left are there and undamaged, counted from the first."""

    def resume(self, marks: Sequence[Mark]) -> None:
        """Go on behind these pieces; what stands after them is cut off."""

    def append(self, piece: bytes, num_frames: int) -> Mark:
        """Add a piece. It is on disk when this returns."""

    def finish(self, metadata: Mapping[str, str], chapters: Sequence[Chapter]) -> None:
        """Make the whole film, check it and sync it; `publish` then gives it its name."""

    def publish(self) -> None: ...

    def discard(self) -> None:
        """Remove what `finish` made."""

    def remove(self) -> None:
        """Remove the growing film."""


class GrowingFile:
    """A fragmented MP4 of pieces from `VideoPieces`; `finish` copies its frames, as they are, into the film proper."""

    def __init__(self, target: Target, fps: float) -> None:
        self._target = target
        self._rate = ffmpeg.frame_rate(fps)
        self._init = b""
        self.length = self.num_frames = 0

    def begin(self) -> None:
        with disk_errors(self._target.partial):
            self._target.partial.unlink(missing_ok=True)
            write_synced(self._target.partial, b"")
            sync(self._target.path.parent)
        self._init, self.length, self.num_frames = b"", 0, 0

    def verified(self, marks: Sequence[Mark]) -> int:
        try:
            with disk_errors(self._target.partial, "read"), self._target.partial.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for count, mark in enumerate(marks):
                    begins = file.tell()
                    if not begins <= mark.length <= size or _digest(file.read(mark.length - begins)) != mark.digest:
                        return count
        except FileNotFoundError:
            return 0
        return len(marks)

    def resume(self, marks: Sequence[Mark]) -> None:
        self.length, self.num_frames = marks[-1].length, sum(mark.frames for mark in marks)
        with disk_errors(self._target.partial), open_own(self._target.partial) as file:
            first = file.read(marks[0].length)
            self._init = first[: mp4.init_length(first)]
            file.truncate(self.length)
            os.fsync(file.fileno())

    def append(self, piece: bytes, num_frames: int) -> Mark:
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
        with disk_errors(self._target.partial), open_own(self._target.partial) as file:
            file.seek(self.length)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.length += len(data)
        self.num_frames += num_frames
        return Mark(num_frames, self.length, _digest(data))

    def finish(self, metadata: Mapping[str, str], chapters: Sequence[Chapter]) -> None:
        partial, whole = self._target.partial, self._target.finishing
        folder = self._target.path.parent
        with disk_errors(whole), tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as text:
            text.write(_ffmetadata(metadata, chapters, self._rate))
            text.seek(0)
            whole.unlink(missing_ok=True)  # ffmpeg would follow a link
            process = ffmpeg.Process(
                [
                    *("-i", ffmpeg.file_argument(partial)),
                    *("-f", "ffmetadata", "-i", f"pipe:{text.fileno()}", "-map_metadata", "1"),
                    *("-map_chapters", "1", "-map", "0:v"),
                    *ffmpeg.finish_arguments(self._target.kind),
                    *("-y", ffmpeg.file_argument(whole)),
                ],
                doing=f"writing {self._target.path}",
                pass_fds=(text.fileno(),),
            )
            try:
                status = process.wait()
            except BaseException:
                process.kill()
                raise
            if status:
                raise process.failure(status)
            if (count := _num_frames(whole, self._target.kind)) != self.num_frames:
                raise MachineError(f"{count} of {self.num_frames} frames came into {self._target.path}")
            if reading.probe(whole).color_primaries != "bt709":
                raise MachineError(f"{self._target.path} lost its colour tags", hint=ffmpeg.INSTALL_HINT)
            sync(whole)

    def publish(self) -> None:
        with _naming(self._target, self._target.finishing):
            os.replace(self._target.finishing, self._target.path)

    def discard(self) -> None:
        self._target.finishing.unlink(missing_ok=True)

    def remove(self) -> None:
        self._target.partial.unlink(missing_ok=True)


class GrowingFolder:
    """A folder of `frame_000001.png` and so on, of pieces from `PicturePieces`, with `metadata` in every picture."""

    def __init__(self, target: Target, metadata: Mapping[str, str]) -> None:
        self._target = target
        self._text = b"".join(_png_text(key, value) for key, value in metadata.items())
        self.num_frames = 0

    @property
    def length(self) -> int:
        return self.num_frames

    def begin(self) -> None:
        with disk_errors(self._target.partial):
            if self._target.partial.exists():
                shutil.rmtree(self._target.partial)
            self._target.partial.mkdir()
            sync(self._target.path.parent)
        self.num_frames = 0

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
        self.num_frames = marks[-1].length
        with disk_errors(self._target.partial):
            for name in filter(FRAME_NAME.fullmatch, os.listdir(self._target.partial)):
                if int(name.removeprefix("frame_").removesuffix(".png")) > self.num_frames:
                    (self._target.partial / name).unlink()

    def append(self, piece: bytes, num_frames: int) -> Mark:
        pictures = [picture[:PNG_HEAD] + self._text + picture[PNG_HEAD:] for picture in _pictures_in(piece)]
        for picture in pictures:
            path = self._frame(self.num_frames)
            with disk_errors(path):
                write_synced(path, picture)
            self.num_frames += 1
        with disk_errors(self._target.partial):
            sync(self._target.partial)
        return Mark(num_frames, self.num_frames, _digest(*pictures))

    def finish(self, metadata: Mapping[str, str], chapters: Sequence[Chapter]) -> None:
        """Nothing is left to do: the folder is the film."""

    def publish(self) -> None:
        place, old = self._target.path, self._target.path.with_name(f".old-{secrets.token_hex(5)}")
        with _naming(self._target, self._target.partial):
            holds_frames(place)
            if place.exists():  # what other programs left in an empty one stands in the way as well
                os.rename(place, old)
            try:
                os.rename(self._target.partial, place)
            except BaseException:
                if old.exists():
                    os.rename(old, place)
                raise
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        """Nothing was made."""

    def remove(self) -> None:
        shutil.rmtree(self._target.partial, ignore_errors=True)

    def _frame(self, index: int) -> Path:
        return self._target.partial / f"frame_{index + 1:06d}.png"


def _num_frames(film: Path, kind: str) -> int:
    """Frames in a finished film, by its own index: what ffmpeg says of itself, not every version says."""
    with film.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return mp4.num_samples(data) if kind == "mp4" else matroska.num_blocks(data)


@contextlib.contextmanager
def _naming(target: Target, whole: Path) -> Iterator[None]:
    """If the whole film cannot take its name it stays under the one it has, and the error says so."""
    try:
        yield
        sync(target.path.parent)
    except (OSError, InputError) as error:
        raise MachineError(
            f"the film is complete but could not be named {target.path}: {error}",
            hint=f"run `mv {shlex.quote(str(whole))} {shlex.quote(str(target.path))}`",
        ) from error


def _digest(*data: bytes) -> str:
    digest = hashlib.sha256()
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def _ffmetadata(metadata: Mapping[str, str], chapters: Sequence[Chapter], rate: Fraction) -> str:
    """The text form of metadata that ffmpeg reads: an argument could not exceed 128 KiB, and any user sees those."""
    lines = [f"{_escape(key)}={_escape(value)}\n" for key, value in metadata.items()]
    for chapter in chapters:
        end = chapter.start_frame + chapter.num_frames
        lines.append(f"[CHAPTER]\nTIMEBASE={rate.denominator}/{rate.numerator}\n")
        lines.append(f"START={chapter.start_frame}\nEND={end}\ntitle={_escape(chapter.title)}\n")
    return ";FFMETADATA1\n" + "".join(lines)


def _escape(text: str) -> str:
    return re.sub(r"([=;#\\\n])", r"\\\1", text)


def _pictures_in(piece: bytes) -> Iterator[bytes]:
    """The PNG files that stand one after another."""
    start = end = 0
    while end < len(piece):
        end += len(PNG_SIGNATURE)
        name = b""
        while name != b"IEND":
            length, name = struct.unpack_from(">I4s", piece, end)
            end += 12 + length
        yield piece[start:end]
        start = end


def _png_text(key: str, value: str) -> bytes:
    """An iTXt chunk: any characters, compressed."""
    content = key.encode("latin-1", "replace") + b"\0\1\0\0\0" + zlib.compress(value.encode())
    chunk = b"iTXt" + content
    return struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
