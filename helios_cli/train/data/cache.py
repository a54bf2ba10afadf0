"""A cache of encoded clips: written shard by shard by one process, read meanwhile by others.

    cache.json              what the clips were made with
    empty.safetensors       the rows of the empty caption
    NAME.safetensors        a shard: `latents` float16 [M, C, 9, h, w], the chunks of its clips one after the other, and
                            `rows` [R, E], the rows of its captions likewise; its header says which are whose

A shard appears under its name only when it is whole and never changes, so that a reader maps it into memory as it is.
Latents are those the transformer works on, normalised by the VAE's statistics; each chunk is encoded on its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from helios_cli.errors import InputError
from helios_cli.files import replacing
from helios_cli.film.disk import disk_errors
from helios_cli.units import HISTORY_CHUNKS, HISTORY_LATENTS, LATENTS_PER_CHUNK

NOTE = "cache.json"
EMPTY = "empty.safetensors"
SHARD_SUFFIX = ".shard.safetensors"
CLIPS = "clips"
"""Key of a shard's header under which its clips stand."""

TEXT_ROWS = 24
"""Rows that captions are padded to for a batch; more than any caption of the toy world has."""

MAPPED_SHARDS = 1024
"""Shards that are mapped at a time; a process may have 65530 mappings of all kinds."""


@dataclass(frozen=True)
class EncodedClip:
    """A clip of n chunks. `latents`: [n, C, 9, h, w]; `captions`: that of each chunk."""

    latents: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class CacheNote:
    """What a cache is made with; a cache of anything else is another one.

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


class Clip(NamedTuple):
    """`latents`: [C, 9n, h, w] float32; `rows`: [K, E] float32 of the first chunk's caption, without padding."""

    latents: Tensor
    rows: Tensor
    caption: str


class Batch(NamedTuple):
    """B chunks with what came before them, as `engine.history.History` holds it: absent latents are zero.

    Attributes:
        latents: [B, C, 9, h, w] float32, the chunks.
        past: [B, C, 19, h, w] float32, the latents right before, oldest first.
        anchor: [B, C, 1, h, w] float32, the first latent of the clip; zero for its first chunk.
        rows: [B, text_rows, E] float32, the captions' rows, zero behind their ends.
        captions: as text.
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
    """The clips of a cache that are there, in the order in which they were found. `refresh` finds those since added.

    Attributes:
        note: what the cache was made with.
        lengths: chunks of each clip.
    """

    def __init__(self, folder: Path | str, *, text_rows: int = TEXT_ROWS) -> None:
        """InputError if `folder` is no cache or one of its captions has more than `text_rows` rows."""
        self.folder, self.text_rows = Path(folder), text_rows
        self.note = read_note(self.folder)
        self.lengths: list[int] = []
        self._entries: list[_Entry] = []
        self._known: set[str] = set()
        self._mapped = lru_cache(MAPPED_SHARDS)(load_file)
        self.refresh()

    def __len__(self) -> int:
        return len(self._entries)

    def refresh(self) -> int:
        """Look for shards that have been added; returns how many clips they hold. Known clips keep their numbers."""
        before = len(self)
        for path in shards(self.folder):
            if path.name not in self._known:
                self._add(path)
        return len(self) - before

    def clip(self, index: int) -> Clip:
        """A whole clip."""
        entry = self._entries[index]
        first = entry.captions[0]
        latents = self._chunks(entry, 0, entry.end - entry.begin)
        return Clip(latents.float(), self._rows(entry, first).float(), first.text)

    def batch(self, picks: Sequence[tuple[int, int]]) -> Batch:
        """Chunks by (clip, chunk of the clip), with the latents before them and their captions."""
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
        """The rows of the empty caption, [text_rows, E] float32, zero behind their end."""
        stored = load_file(self.folder / EMPTY)["rows"]
        rows = torch.zeros(self.text_rows, self.note.text_dim)
        rows[: len(stored)] = stored
        return rows

    def _add(self, path: Path) -> None:
        clips = read_clips(path)
        for clip in clips:
            captions = tuple(_Caption(*caption) for caption in clip["captions"])
            for caption in captions:
                if caption.end - caption.begin > self.text_rows:
                    raise InputError(
                        f"a caption in {self.folder} has {caption.end - caption.begin} tokens, and training has room "
                        f"for {self.text_rows}: {caption.text!r}",
                        hint="raise text_rows (up to 512), or shorten the caption",
                    )
            self._entries.append(_Entry(path, clip["begin"], clip["end"], captions))
            self.lengths.append(clip["end"] - clip["begin"])
        self._known.add(path.name)

    def _chunks(self, entry: _Entry, begin: int, end: int) -> Tensor:
        """float16 [C, 9 * (end - begin), h, w] of a clip's chunks `begin` to `end`."""
        chunks = self._mapped(entry.shard)["latents"][entry.begin + begin : entry.begin + end]
        return chunks.movedim(0, 1).flatten(1, 2)

    def _rows(self, entry: _Entry, caption: _Caption) -> Tensor:
        return self._mapped(entry.shard)["rows"][caption.begin : caption.end]


def open_cache(folder: Path, note: CacheNote, empty: Tensor) -> None:
    """Begin a cache, or go on with one that was made with the same. `empty`: rows of the empty caption.

    InputError if what is there was made with something else.
    """
    if (folder / NOTE).exists():
        _require_same(folder, read_note(folder), note)
        return
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / EMPTY, save({"rows": empty.contiguous()}))
        fields = {**vars(note), "latent_shape": list(note.latent_shape)}
        _write(folder / NOTE, json.dumps(fields, indent=2).encode())


def read_note(folder: Path) -> CacheNote:
    """InputError if the folder is no cache."""
    try:
        fields = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return CacheNote(**{**fields, "latent_shape": tuple(fields["latent_shape"])})
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is no cache of encoded clips: it has no {NOTE}",
            hint="encode the clips first: helios train recipes/train/tiny-latents.toml",
        ) from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{folder / NOTE} cannot be read: {error}", hint=f"remove {folder} and encode anew") from error


def _require_same(folder: Path, found: CacheNote, wanted: CacheNote) -> None:
    if found == wanted:
        return
    differing = [
        name for name in {**found.source, **wanted.source} if found.source.get(name) != wanted.source.get(name)
    ]
    said = [f"{name} was {found.source.get(name)}, is {wanted.source.get(name)}" for name in differing]
    what = "; ".join(said) or "the VAE or the text encoder was another one"
    raise InputError(f"the cache {folder} was made otherwise: {what}", hint="write another `out`, or remove the folder")


def shards(folder: Path) -> list[Path]:
    """The shards that are there, by name."""
    return sorted(folder.glob(f"*{SHARD_SUFFIX}"))


def captions_of(folder: Path) -> set[str]:
    """All captions of a cache. InputError if the folder is none."""
    read_note(folder)
    return {text for path in shards(folder) for clip in read_clips(path) for text, _, _ in clip["captions"]}


def shard_path(folder: Path, name: str) -> Path:
    return folder / f"{name}{SHARD_SUFFIX}"


def write_shard(
    path: Path, clips: Iterable[EncodedClip], rows: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Write clips as one shard. `rows`: [K, E] of each of their captions; `about`: further words for its header.

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
    """The words in a shard's header. InputError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            return shard.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="remove it and encode its clips anew") from error


def read_clips(path: Path) -> list[dict]:
    """Where the clips of a shard are: `begin` and `end` in `latents`, and `captions`, a (text, begin, end) a chunk."""
    try:
        return json.loads(read_about(path)[CLIPS])
    except (KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no shard of clips", hint="remove it and encode its clips anew") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replacing(path) as new:
        new.write_bytes(data)
