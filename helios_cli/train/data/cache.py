"""A cache of encoded clips: written shard by shard by one process, while others may already read it.

    cache.json              what the clips were made with
    empty.safetensors       the rows of the empty caption
    NAME.safetensors        a shard: `latents` float16 [M, C, 9, h, w], the chunks of its clips one after the other, and
                            `rows` [R, E], the rows of its captions; its header says which belong to which clip

A shard appears under its name only when it is complete and never changes, so a reader can map it into memory. Latents
are normalised by the VAE's statistics, as the transformer uses them; each chunk is encoded on its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from helios_cli.errors import InputError
from helios_cli.files import replacing
from helios_cli.film.disk import disk_errors
from helios_cli.units import HISTORY_CHUNKS, HISTORY_LATENTS, LATENTS_PER_CHUNK, PIXELS_PER_CELL

NOTE = "cache.json"
EMPTY = "empty.safetensors"
SHARD_SUFFIX = ".shard.safetensors"
CLIPS = "clips"
"""The key of a shard's header that lists its clips."""

TEXT_ROWS = 24
"""Rows that captions are padded to for a batch; more than any caption of the toy world has."""

MAPPED_SHARDS = 1024
"""Shards that are mapped at a time; a process can have 65530 mappings of all kinds."""

Note = TypeVar("Note")


@dataclass(frozen=True)
class EncodedClip:
    """A clip of n chunks. `latents`: [n, C, 9, h, w]; `captions`: that of each chunk."""

    latents: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class CacheNote:
    """The making of a cache: anything else needs another cache.

    Attributes:
        encoder: identity of the VAE, the text encoder and the tokenizer (`encode.encoder_identity`).
        source: where the clips come from and how they are cut, in words for a message.
        latent_shape: C, h and w.
        text_dim: width of a caption's row.
    """

    encoder: str
    source: dict[str, str]
    latent_shape: tuple[int, int, int]
    text_dim: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the clips in pixels."""
        return self.latent_shape[2] * PIXELS_PER_CELL, self.latent_shape[1] * PIXELS_PER_CELL


class Batch(NamedTuple):
    """B chunks with what came before them, as in `engine.history.History`: missing latents are zero.

    Attributes:
        latents: [B, C, 9, h, w] float32, the chunks.
        past: [B, C, 19, h, w] float32, the latents right before, oldest first.
        anchor: [B, C, 1, h, w] float32, the first latent of the clip; zero for its first chunk.
        rows: [B, text_rows, E] float32, the captions' rows, padded with zeros.
        captions: captions as text.
    """

    latents: Tensor
    past: Tensor
    anchor: Tensor
    rows: Tensor
    captions: list[str]


class _Caption(NamedTuple):
    text: str
    begin: int
    end: int


class _Entry(NamedTuple):
    """A clip's place: chunks `begin` to `end` of a shard, and the caption of each."""

    shard: Path
    begin: int
    end: int
    captions: tuple[_Caption, ...]


class LatentClips:
    """The clips of a cache, in the order in which they were found. `refresh` finds those added since.

    Attributes:
        note: what the cache was made with.
        lengths: number of chunks of each clip.
    """

    def __init__(self, folder: Path | str, *, text_rows: int = TEXT_ROWS) -> None:
        """InputError if `folder` is not a cache or one of its captions has more than `text_rows` rows."""
        self.folder, self.text_rows = Path(folder), text_rows
        self.note = read_cache_note(self.folder)
        self.lengths: list[int] = []
        self._entries: list[_Entry] = []
        self._shards: set[str] = set()
        self._mapped = lru_cache(MAPPED_SHARDS)(load_file)
        self.refresh()

    def __len__(self) -> int:
        return len(self._entries)

    def refresh(self) -> int:
        """Look for new shards; return how many clips they hold. Clips keep their numbers."""
        before = len(self)
        for path in shards(self.folder):
            if path.name not in self._shards:
                self._add(path)
        return len(self) - before

    def batch(self, picks: Sequence[tuple[int, int]]) -> Batch:
        """Return chunks by (clip, chunk of the clip), with the latents before them and their captions."""
        channels, height, width = self.note.latent_shape
        latents = torch.empty(len(picks), channels, LATENTS_PER_CHUNK, height, width)
        past = torch.zeros(len(picks), channels, HISTORY_LATENTS, height, width)
        anchor = torch.zeros(len(picks), channels, 1, height, width)
        rows = torch.zeros(len(picks), self.text_rows, self.note.text_dim)
        captions = []
        for i, (clip, chunk) in enumerate(picks):
            entry = self._entries[clip]
            latents[i] = self._chunks(entry, chunk, chunk + 1)
            if chunk:
                anchor[i] = self._chunks(entry, 0, 1)[:, :1]
                before = self._chunks(entry, max(0, chunk - HISTORY_CHUNKS), chunk)[:, -HISTORY_LATENTS:]
                past[i, :, -before.shape[1] :] = before
            caption = entry.captions[chunk]
            rows[i, : caption.end - caption.begin] = self._rows(entry, caption)
            captions.append(caption.text)
        return Batch(latents, past, anchor, rows, captions)

    def empty_rows(self) -> Tensor:
        """Return the rows of the empty caption, [text_rows, E] float32, padded with zeros."""
        stored = load_file(self.folder / EMPTY)["rows"]
        rows = torch.zeros(self.text_rows, self.note.text_dim)
        rows[: len(stored)] = stored
        return rows

    def _add(self, path: Path) -> None:
        for clip in read_clips(path):
            captions = tuple(_Caption(*caption) for caption in clip["captions"])
            for caption in captions:
                if caption.end - caption.begin > self.text_rows:
                    raise InputError(
                        f"a caption in {self.folder} has {caption.end - caption.begin} tokens, but training has room "
                        f"for {self.text_rows}: {caption.text!r}",
                        hint="raise text_rows (up to 512), or shorten the caption",
                    )
            self._entries.append(_Entry(path, clip["begin"], clip["end"], captions))
            self.lengths.append(clip["end"] - clip["begin"])
        self._shards.add(path.name)

    def _chunks(self, entry: _Entry, begin: int, end: int) -> Tensor:
        """Return a clip's chunks `begin` to `end`, float16 [C, 9 * (end - begin), h, w]."""
        chunks = self._mapped(entry.shard)["latents"][entry.begin + begin : entry.begin + end]
        return chunks.movedim(0, 1).flatten(1, 2)

    def _rows(self, entry: _Entry, caption: _Caption) -> Tensor:
        return self._mapped(entry.shard)["rows"][caption.begin : caption.end]


def open_cache(folder: Path, note: CacheNote, empty: Tensor) -> None:
    """Begin a cache, or continue one that was made with the same note. `empty`: rows of the empty caption.

    InputError if the cache was made with something else.
    """
    if not (folder / NOTE).exists():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / EMPTY, save({"rows": empty.contiguous()}))
            write_note(folder / NOTE, {**vars(note), "latent_shape": list(note.latent_shape)})
        return
    before = read_cache_note(folder)
    require_same(f"the cache {folder} was", before.source, note.source)
    if before != note:
        raise InputError(
            f"the cache {folder} was made with another VAE or text encoder",
            hint="write another `out`, or remove the folder",
        )


def read_cache_note(folder: Path) -> CacheNote:
    """InputError if the folder is not a cache."""
    return read_note(
        folder / NOTE,
        lambda fields: CacheNote(**{**fields, "latent_shape": tuple(fields["latent_shape"])}),
        missing=f"{folder} is not a cache of encoded clips: it has no {NOTE}",
        hint="encode the clips first: helios train recipes/train/tiny-latents.toml",
    )


def write_note(path: Path, fields: dict) -> None:
    """Write what a folder is made with; other processes may be about to read it."""
    _write(path, (json.dumps(fields, indent=2) + "\n").encode())


def read_note(path: Path, build: Callable[[dict], Note], *, missing: str, hint: str) -> Note:
    """Read what a folder is made with. InputError if it says nothing about that, or nothing readable."""
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(missing, hint=hint) from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint=f"remove {path.parent} and make it again") from error


def require_same(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """InputError if a folder was made with something else, named key by key."""
    changed = [
        f"{key} was {before.get(key)}, is {now.get(key)}"
        for key in {**before, **now}
        if before.get(key) != now.get(key)
    ]
    if changed:
        message = f"{what} made with other settings: {'; '.join(changed)}"
        raise InputError(message, hint="write another `out`, or remove the folder")


def shards(folder: Path) -> list[Path]:
    """Return the shards of a cache, by name."""
    return sorted(folder.glob(f"*{SHARD_SUFFIX}"))


def captions_of(folder: Path) -> set[str]:
    """Return all captions of a cache. InputError if the folder is not a cache."""
    read_cache_note(folder)
    return {text for path in shards(folder) for clip in read_clips(path) for text, _, _ in clip["captions"]}


def shard_path(folder: Path, name: str) -> Path:
    return folder / f"{name}{SHARD_SUFFIX}"


def write_shard(
    path: Path, clips: Iterable[EncodedClip], rows: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Write clips as one shard. `rows`: [K, E] of each of their captions; `about`: further entries of its header.

    Latents are rounded to float16: to 11 bits, three more than the bfloat16 that they are computed in. InputError if
    they do not fit.
    """
    clips = list(clips)
    latents = torch.cat([clip.latents for clip in clips]).half()
    if not torch.isfinite(latents).all():
        raise InputError(
            f"latents for {path} are not finite numbers, or beyond float16's range",
            hint="look at latents_mean and latents_std in the VAE's config.json",
        )
    texts = list(dict.fromkeys(text for clip in clips for text in clip.captions))
    ends = list(accumulate(len(rows[text]) for text in texts))
    place = {text: (end - len(rows[text]), end) for text, end in zip(texts, ends, strict=True)}
    header, begin = [], 0
    for clip in clips:
        end = begin + len(clip.latents)
        header.append({"begin": begin, "end": end, "captions": [(text, *place[text]) for text in clip.captions]})
        begin = end
    tensors = {"latents": latents.contiguous(), "rows": torch.cat([rows[text] for text in texts]).contiguous()}
    with disk_errors(path):
        _write(path, save(tensors, {CLIPS: json.dumps(header), **(about or {})}))


def read_about(path: Path) -> dict[str, str]:
    """Return a shard's header. InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            return shard.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="remove it and encode its clips again") from error


def read_clips(path: Path) -> list[dict]:
    """Return the clips of a shard: `begin` and `end` in `latents`, and `captions`, a (text, begin, end) per chunk."""
    try:
        return json.loads(read_about(path)[CLIPS])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a shard of clips", hint="remove it and encode its clips again") from error


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as new:
        new.write_bytes(data)
