"""Keeps the finished chunks of a film that several workers render, until they are joined into the film.

`<film>.parts/` next to the film holds:

    film.json           what the chunks are computed by: weights, processor, versions; it also marks the folder as ours
    chunks/             a cache without limit: state and piece of each finished chunk, by fingerprint
    done/<segment>.json the fingerprints of a segment whose chunks are all there
    claims/             which process renders which segment (`film.claims`)

Files appear under their names only when they are whole, so that any number of processes may use the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from helios_cli.errors import InputError
from helios_cli.files import NEW, create_once, replacing
from helios_cli.film.cache import Cache
from helios_cli.film.claims import Claims
from helios_cli.film.compression import Encoding
from helios_cli.film.disk import disk_errors
from helios_cli.film.encoding import PieceEnd, PieceWriter
from helios_cli.film.growing import GrowingFilm, growing_film
from helios_cli.film.resume import Resumed, Wanted
from helios_cli.film.target import DROPPINGS, OTHER_NAME, Target
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan

FORMAT = "helios parts"
NOTE = "film.json"
CONTENTS = {NOTE, "chunks", "done", "claims"}
NO_LIMIT = 2**62
"""Limit of the cache in a folder of parts: more bytes than a disk has."""


@dataclass(frozen=True)
class DoneSegment:
    """A segment whose chunks are all there: what they are computed by, the fingerprint and the piece's key of each."""

    kind: Mapping[str, object]
    fingerprints: tuple[str, ...]
    keys: tuple[str, ...]

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> DoneSegment:
        """Read the message of a worker, or what `Parts.finish` has written."""
        return cls(note["kind"], tuple(note["fingerprints"]), tuple(note["keys"]))


class Parts:
    """The folder of parts of the film at `target`. Nothing is written before `begin`."""

    def __init__(self, target: Target) -> None:
        self.folder = target.parts
        self.chunks = Cache(self.folder, limit=NO_LIMIT)
        self.claims = Claims(self.folder / "claims")

    def check(self) -> None:
        """Raise InputError if there is something under the folder's name that is not ours, MachineError if that cannot
        be read.

        A folder without a note is ours if nothing else is in it: another process has just created it, or is removing
        it, or was killed then.
        """
        with disk_errors(self.folder, "read"):
            if not os.path.lexists(self.folder):
                return
            is_folder = self.folder.is_dir() and not self.folder.is_symlink()
            is_ours = is_folder and (self._is_ours() or all(map(_is_content, os.listdir(self.folder))))
        if not is_ours:
            raise InputError(
                f"{self.folder} is not a folder of finished chunks of a film",
                hint=f"move it elsewhere, or {OTHER_NAME}",
            )

    @property
    def is_empty(self) -> bool:
        """Return whether no chunk is there."""
        return not any((self.folder / "chunks").glob("*"))

    def kind(self) -> Mapping[str, object] | None:
        """Return what the chunks are computed by; None if the folder is not there, not ours, or being removed."""
        kind = _read(self.folder / NOTE).get("kind") if self._is_ours() else None
        return kind if isinstance(kind, dict) else None

    def begin(self, kind: Mapping[str, object]) -> Mapping[str, object]:
        """Create the folder, unless it is there. Returns what its chunks are computed by: `kind` if it is new."""
        if self.kind() is None:  # a process that was removing it was killed
            self.clear()
        note = json.dumps({"format": FORMAT, "kind": kind}).encode()
        with disk_errors(self.folder):
            for is_last in (False, True):
                try:
                    (self.folder / "done").mkdir(parents=True, exist_ok=True)
                    create_once(self.folder / NOTE, note)
                    break
                except FileNotFoundError:  # another process has just removed the folder
                    if is_last:
                        raise
        return self.kind() or kind

    def done(self, segment: int) -> DoneSegment | None:
        """Return the record of a segment that is done, or None; its chunks may be damaged (`missing`)."""
        with contextlib.suppress(KeyError, TypeError):
            return DoneSegment.of(_read(self._note(segment)))
        return None

    def finish(self, segment: int, done: DoneSegment) -> None:
        """Record that a segment is done. A power cut may lose the record or chunks of it: a worker finds the rest."""
        with disk_errors(self._note(segment)), replacing(self._note(segment)) as new:
            new.write_text(json.dumps(vars(done)), encoding="utf-8")

    def reopen(self, segment: int) -> None:
        """Forget that a segment is done, since chunks of it are missing."""
        self._note(segment).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything except the claims. Other processes see from then on that the chunks are gone."""
        if self._is_ours():
            with contextlib.suppress(OSError), replacing(self.folder / NOTE) as new:
                new.write_text(json.dumps({"format": FORMAT}), encoding="utf-8")
        for name in ("done", "chunks"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / NOTE).unlink()

    def remove(self) -> None:
        """Give up this process's claims, and remove the folder; files that are not ours stay, and it with them."""
        self.clear()
        self.claims.release_all()  # first: a network file system keeps a folder in which a file is open
        shutil.rmtree(self.folder / "claims", ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{NEW}*"):  # of a process that was killed while it wrote
                path.unlink()
            self.folder.rmdir()

    def _is_ours(self) -> bool:
        return _read(self.folder / NOTE).get("format") == FORMAT

    def _note(self, segment: int) -> Path:
        return self.folder / "done" / f"{segment}.json"


def _is_content(name: str) -> bool:
    """Return whether a file or folder of this name may be in a folder of parts."""
    return name in CONTENTS or name.startswith(NEW) or DROPPINGS.fullmatch(name) is not None


def _read(path: Path) -> dict:
    try:
        note = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # absent or damaged: then it says nothing
        return {}
    return note if isinstance(note, dict) else {}


class ChunkStore(Protocol):
    """A place for finished chunks; `film.cache.Cache` is one."""

    def state(self, fingerprint: str) -> bytes | None: ...

    def piece(self, fingerprint: str, key: str) -> bytes | None: ...

    def put(self, fingerprint: str, state: bytes, key: str, piece: bytes) -> None: ...


def segment_film(plan: Plan, target: Target, options: RenderOptions) -> GrowingFilm:
    """Return the film as which a worker encodes chunks of the film at `target`."""
    return growing_film(target, plan.size, plan.fps, Encoding.of(options), lossless=options.changes_frames)


def piece_keys(plan: Plan, target: Target, options: RenderOptions) -> list[str]:
    """Return the keys under which a store has the pieces of the chunks of `plan`."""
    film = segment_film(plan, target, options)
    return [film.piece_key(chunk.num_frames) for chunk in plan.chunks]


class PartsWriter(PieceWriter):
    """Writes the chunks of one segment into `store`; each is safe there as soon as it is finished."""

    def __init__(self, target: Target, film: GrowingFilm, size: tuple[int, int], store: ChunkStore) -> None:
        super().__init__(target, film, size)
        self._store = store

    def resume(self, wanted: Wanted, cache: Cache | None) -> Resumed:
        """Continue after the chunks that are in the store."""
        keys = [self._film.piece_key(chunk.num_frames) for chunk in wanted.chunks]
        count, state = stored(self._store, wanted.fingerprints, keys)
        self.num_frames = sum(chunk.num_frames for chunk in wanted.chunks[:count])
        self._start(cache)
        return Resumed(count, state)

    def _keep(self, piece: bytes, end: PieceEnd) -> bytes | None:
        assert end.safe is not None, "chunks of a segment have fingerprints"
        state = end.safe.save()
        with disk_errors(self.target.path):
            self._store.put(end.safe.fingerprint, state, self._film.piece_key(end.num_frames), piece)
        return state


def stored(store: ChunkStore, fingerprints: Sequence[str], keys: Sequence[str]) -> tuple[int, bytes | None]:
    """Return how many chunks, from the first, are whole in the store, and the state after the last of them."""
    last = None
    for count, (fingerprint, key) in enumerate(zip(fingerprints, keys, strict=True)):
        state = store.state(fingerprint)
        if state is None or store.piece(fingerprint, key) is None:
            return count, last
        last = state
    return len(fingerprints), last


class JoinedChunks(Cache):
    """The chunks of all segments as one cache, from which the film is joined.

    The pieces of a chunk are found under the key that its worker's encoder had, which may be another version than ours.
    """

    def __init__(self, parts: Parts, segments: Sequence[DoneSegment]) -> None:
        super().__init__(parts.folder, limit=NO_LIMIT)
        self._keys = {
            (fingerprint, _frames(key)): key
            for segment in segments
            for fingerprint, key in zip(segment.fingerprints, segment.keys, strict=True)
        }

    def piece(self, fingerprint: str, key: str) -> bytes | None:
        return super().piece(fingerprint, self._keys.get((fingerprint, _frames(key)), key))

    def promise(self, fingerprints: Sequence[str]) -> bool:
        return all(self.has(fingerprint) for fingerprint in fingerprints)

    def put(self, fingerprint: str, state: bytes, key: str, piece: bytes) -> None:
        """Do nothing: the chunks are there."""


def _frames(key: str) -> str:
    """The number of frames in a piece's key, which begins with its encoding."""
    return key.rpartition("-")[2]


class LeftChunks(Cache):
    """Chunks that workers have left of a film, in front of a `cache` or alone."""

    def __init__(self, parts: Parts, cache: Cache | None) -> None:
        super().__init__(parts.folder, limit=NO_LIMIT)
        self._cache = cache

    def has(self, fingerprint: str) -> bool:
        return super().has(fingerprint) or (self._cache is not None and self._cache.has(fingerprint))

    def promise(self, fingerprints: Sequence[str]) -> bool:
        return self._cache is not None and self._cache.promise(fingerprints)

    def state(self, fingerprint: str) -> bytes | None:
        return super().state(fingerprint) or (self._cache.state(fingerprint) if self._cache else None)

    def piece(self, fingerprint: str, key: str) -> bytes | None:
        return super().piece(fingerprint, key) or (self._cache.piece(fingerprint, key) if self._cache else None)

    def put(self, fingerprint: str, state: bytes, key: str, piece: bytes) -> None:
        if self._cache:
            self._cache.put(fingerprint, state, key, piece)

    def note_film(self, title: str, output: str, fingerprints: Sequence[str]) -> None:
        if self._cache:
            self._cache.note_film(title, output, fingerprints)
