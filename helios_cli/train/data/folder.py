"""Encoding a folder of clips with captions: each clip becomes a shard, identified by its contents.

A clip is a film (.mp4 .mkv .webm .gif) or a folder of PNG frames; the caption of `boat.mp4`, or of the folder `boat`,
is in `boat.txt` next to it. Unusable clips are named and skipped. A clip is encoded again only when its bytes or its
caption change; the shard of a changed or deleted clip is removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from helios_cli.errors import InputError
from helios_cli.files import by_number
from helios_cli.film import reading
from helios_cli.film.media import VideoClip, read_image
from helios_cli.recipe.prompts import clean_prompt, has_words
from helios_cli.train.data.cache import EncodedClip, open_cache, read_about, shard_path, shards, write_shard
from helios_cli.train.data.encode import ClipEncoder
from helios_cli.train.events import Event, Filled
from helios_cli.train.settings.encoders import FolderClips
from helios_cli.units import FRAMES_PER_CHUNK

FILMS = (".mp4", ".mkv", ".webm", ".gif")
FRAMES = ".png"

SPEAKER = re.compile(r"\[[^]]* @ 0x[0-9a-f]+\] ")
"""The name of the part of ffmpeg in front of a message."""

SHOWN_REASONS = 3
"""Number of clips that an error names when none can be used."""


@dataclass(frozen=True)
class ClipEncoded(Filled):
    """A clip is in the cache; `done` of `total` clips have been looked at."""

    clip: str
    chunks: int
    seconds: float

    @property
    def text(self) -> str:
        return f"{self.done:,} of {self.total:,}: {self.clip}, {self.chunks} chunks in {self.seconds:.1f} s"


@dataclass(frozen=True)
class ClipSkipped(Event):
    """A clip cannot be used, for `reason`."""

    clip: str
    reason: str

    @property
    def text(self) -> str:
        return f"skipped {self.clip}: {self.reason}"


@dataclass(frozen=True)
class FolderDone(Event):
    """All clips have been looked at: `encoded` now, `kept` from earlier runs, or `skipped`."""

    encoded: int
    kept: int
    skipped: int

    @property
    def text(self) -> str:
        return f"{self.encoded:,} clips encoded, {self.kept:,} kept from before, {self.skipped:,} skipped"


def encode_folder(folder: Path, clips: FolderClips, seed: int, encoder: ClipEncoder) -> Iterator[Event]:
    """Bring the cache in `folder` up to date with the clips. InputError if none of them can be used."""
    sources = find_clips(Path(clips.path))
    source = {"clips": f"the folder {os.path.abspath(clips.path)}", "fps": f"{clips.fps:g}", "seed": str(seed)}
    open_cache(folder, encoder.note(source), encoder.rows([""])[""])
    contents = _contents(folder)
    used, encoded, skipped = set(), 0, []
    for number, clip in enumerate(sources, 1):
        began = time.perf_counter()
        try:
            caption, state = clip.caption(), clip.state()
            content = contents.get((clip.name, state)) or clip.content()
            path = shard_path(folder, _key(content, caption))
            if not path.exists():
                latents = encoder.latents(clip.chunks(encoder.size, clips.fps), _seed(seed, content))
                about = {"clip": clip.name, "state": state, "content": content}
                write_shard(path, [EncodedClip(latents, (caption,) * len(latents))], encoder.rows([caption]), about)
                encoded += 1
                yield ClipEncoded(number, len(sources), clip.name, len(latents), time.perf_counter() - began)
            used.add(path)
        except InputError as error:
            skipped.append(ClipSkipped(clip.name, error.message))
            yield skipped[-1]
    _require_some(clips.path, used, skipped)
    for path in set(shards(folder)) - used:
        path.unlink(missing_ok=True)
    yield FolderDone(encoded, len(sources) - len(skipped) - encoded, len(skipped))


def find_clips(folder: Path) -> list[SourceClip]:
    """Return the clips in `folder` and below it, by name. InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="set clips.path to the folder of clips")
    paths = []
    for place, _, files in os.walk(folder):
        names = [name for name in files if not name.startswith(".")]
        paths += [Path(place, name) for name in names if name.lower().endswith(FILMS)]
        if Path(place) != folder and any(name.lower().endswith(FRAMES) for name in names):
            paths.append(Path(place))
    if not paths:
        raise InputError(
            f"{folder} holds no clips", hint=f"put {' '.join(FILMS)} files there, or folders of {FRAMES} frames"
        )
    return [SourceClip(path, path.relative_to(folder).as_posix()) for path in sorted(paths)]


@dataclass(frozen=True)
class SourceClip:
    """A clip of the user's. `name`: its path in the folder of clips."""

    path: Path
    name: str

    def caption(self) -> str:
        """Return the caption as the model reads prompts. InputError if there is none."""
        path = self.path.parent / f"{self.path.name if self.path.is_dir() else self.path.stem}.txt"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(f"it has no caption: there is no {path.name} next to it") from error
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"its caption {path.name} cannot be read: {error}") from error
        if not has_words(text):
            raise InputError(f"its caption {path.name} is empty")
        return clean_prompt(text)

    def state(self) -> str:
        """Hash what tells a changed clip without reading it: sizes and times. InputError if they cannot be read."""
        with _readable():
            states = [file.stat() for file in self._files]
        return hashlib.sha256(repr([(one.st_size, one.st_mtime_ns) for one in states]).encode()).hexdigest()

    def content(self) -> str:
        """Hash the clip's bytes. InputError if they cannot be read."""
        digest = hashlib.sha256()
        with _readable():
            for file in self._files:
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    def chunks(self, size: tuple[int, int], fps: float) -> Iterator[np.ndarray]:
        """Yield the clip's last whole chunks, float32 [3, 33, H, W] in [-1, 1], with one in memory at a time.

        A folder of frames is assumed to have the rate `fps`. InputError if the clip is too short or damaged anywhere.
        """
        if self.path.is_dir():
            yield from self._pictures(size)
            return
        _require_sound(self.path)
        yield from VideoClip(self.path, size, fps).chunks()

    def _pictures(self, size: tuple[int, int]) -> Iterator[np.ndarray]:
        files = self._files
        if len(files) < FRAMES_PER_CHUNK:
            raise InputError(f"it has {len(files)} frames; {FRAMES_PER_CHUNK} are needed")
        for first in range(len(files) % FRAMES_PER_CHUNK, len(files), FRAMES_PER_CHUNK):
            yield np.stack([read_image(file, size) for file in files[first : first + FRAMES_PER_CHUNK]], axis=1)

    @cached_property
    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        names = [name for name in os.listdir(self.path) if name.lower().endswith(FRAMES) and not name.startswith(".")]
        return [self.path / name for name in sorted(names, key=by_number)]


@contextmanager
def _readable() -> Iterator[None]:
    """Turn errors of reading a clip into an InputError about it; errors of writing shards are not the clip's fault."""
    try:
        yield
    except OSError as error:
        raise InputError(f"it cannot be read: {error.strerror}") from error


def _require_sound(path: Path) -> None:
    """InputError if ffmpeg reports anything while it decodes the film: the frames it goes on with may be grey or torn.

    A GIF that was cut off between two frames looks whole to ffmpeg, so it passes.
    """
    with reading.decoder(path, "-c:v", "wrapped_avframe", "-f", "framecrc") as decoder:
        for _ in decoder.stdout:
            pass
        if decoder.wait() or decoder.messages():
            raise InputError(f"it is damaged: {SPEAKER.sub('', decoder.messages()) or 'no message'}")


def _require_some(folder: str, used: set[Path], skipped: list[ClipSkipped]) -> None:
    if used:
        return
    reasons = "; ".join(f"{skip.clip}: {skip.reason}" for skip in skipped[:SHOWN_REASONS])
    more = f"; and {len(skipped) - SHOWN_REASONS} more" if len(skipped) > SHOWN_REASONS else ""
    raise InputError(
        f"none of the {len(skipped)} clips in {folder} can be used ({reasons}{more})",
        hint="a clip needs a caption in a .txt next to it, and 33 frames at the rate clips.fps",
    )


def _contents(folder: Path) -> dict[tuple[str, str], str]:
    """Return the content hashes of encoded clips, by name and state: unchanged clips need not be read."""
    headers = map(read_about, shards(folder))
    return {(about["clip"], about["state"]): about["content"] for about in headers}


def _key(content: str, caption: str) -> str:
    """Return a shard's name, the same for equal clips."""
    return hashlib.sha256(f"{content} {caption}".encode()).hexdigest()[:32]


def _seed(seed: int, content: str) -> int:
    return (seed + int(content[:12], 16)) % 2**63
