"""Kept pieces: finished chunks of films, found again by fingerprint wherever the same chunk is asked for.

`pieces/chunks/<fingerprint>/` holds a chunk's `state` and its encoded pieces, each sealed with its SHA-256. Any number
of processes, and of users, may use it at once: files appear under their names only when they are whole, what has gone
or is damaged is simply not there, and what may not be read is left alone. The chunk that was used longest ago goes
first, but for those that were promised to an unfinished film (`promise`). Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helios_cli import machine
from helios_cli.files import replacing
from helios_cli.film.disk import is_sealed, seal, unseal

LIMIT_BYTES = 10 * 10**9
LIMIT_SHARE = 0.1
"""Of the disk's free space without them, where that is less."""

LISTED_SHARE = 0.02
"""Of the limit, after which a process that adds chunks looks again at what others have added and used: listing all
takes 0.3 s where 6,000 are kept."""

PROMISED_DAYS = 7
PROMISED = "promised"
"""The file of a chunk that does not go, from its date on for PROMISED_DAYS."""


@dataclass(frozen=True)
class KeptFilm:
    """A film of which chunks are kept. `last_used` is seconds since the epoch; chunks may belong to several films."""

    title: str
    output: str
    chunks: int
    kept_chunks: int
    num_bytes: int
    last_used: float


@dataclass(frozen=True, order=True)
class _Entry:
    """A chunk's folder. The one that was used longest ago is the least."""

    last_used: float
    path: Path
    num_bytes: int


class Cache:
    """The kept pieces in `folder` (default: in HELIOS_HOME), `limit` bytes at most. Raises OSError in `put` only."""

    def __init__(self, folder: Path | None = None, *, limit: int | None = None) -> None:
        self.folder = folder or machine.home() / "pieces"
        self._limit = limit
        self._oldest: list[_Entry] = []  # a heap of what was there when it was listed last
        self._num_bytes = 0  # by what this process knows
        self._unlisted_bytes = math.inf  # added by this process since then

    def has(self, fingerprint: str) -> bool:
        """Whether the chunk is kept, readable and whole. Bits that have turned are seen by `state` only."""
        return is_sealed(self._entry(fingerprint) / "state")

    def promise(self, fingerprints: Sequence[str]) -> bool:
        """Whether all these chunks are kept, and will be for PROMISED_DAYS whatever else is."""
        if not all(self.has(fingerprint) for fingerprint in fingerprints):
            return False
        try:
            for fingerprint in fingerprints:
                (self._entry(fingerprint) / PROMISED).touch()
        except OSError:  # gone in between, or another user's
            return False
        return all(self.has(fingerprint) for fingerprint in fingerprints)

    def state(self, fingerprint: str) -> bytes | None:
        """The state after the chunk, which holds its latents; None if it is not kept."""
        with contextlib.suppress(OSError):  # it is not there, or not ours: then its age does not matter
            os.utime(self._entry(fingerprint))
        return self._read(self._entry(fingerprint) / "state")

    def piece(self, fingerprint: str, key: str) -> bytes | None:
        """The chunk's piece in the encoding and with the frames that `key` stands for; None if it is not kept."""
        return self._read(self._entry(fingerprint) / f"{key}.piece")

    def put(self, fingerprint: str, state: bytes, key: str, piece: bytes) -> None:
        """Keep a chunk; others go where it needs room. OSError if the disk does not take it."""
        entry = self._entry(fingerprint)
        is_new = not entry.exists()
        bodies = {"state": state, f"{key}.piece": piece}
        new = {name: seal(body) for name, body in bodies.items() if not (entry / name).exists()}
        num_bytes = sum(len(data) for data in new.values())
        if not self._make_room(num_bytes):
            return
        for name, data in new.items():
            self._write(entry / name, data)
        self._num_bytes += num_bytes
        self._unlisted_bytes += num_bytes
        if is_new:
            heapq.heappush(self._oldest, _Entry(time.time(), entry, num_bytes))

    def note_film(self, title: str, output: str, fingerprints: Sequence[str]) -> None:
        """Remember which chunks a film has, for `films`."""
        name = hashlib.sha256(os.fsencode(output)).hexdigest()[:16]
        data = {"title": title, "output": output, "chunks": list(fingerprints)}
        self._write(self.folder / "films" / f"{name}.json", json.dumps(data).encode())

    def films(self) -> list[KeptFilm]:
        """Films of which chunks are kept, the last used first."""
        entries = {entry.path.name: entry for entry in self._entries()}
        found = []
        for note in self._notes():
            kept = [entries[chunk] for chunk in set(note["chunks"]) if chunk in entries and self.has(chunk)]
            if kept:
                size, used = sum(entry.num_bytes for entry in kept), max(entry.last_used for entry in kept)
                found.append(KeptFilm(note["title"], note["output"], len(note["chunks"]), len(kept), size, used))
        return sorted(found, key=lambda film: -film.last_used)

    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries())

    def clear(self) -> int:
        """Remove everything. Returns the bytes that it took."""
        freed = self.num_bytes()
        for entry in self._entries():
            self._remove(entry.path)
        shutil.rmtree(self.folder / "films", ignore_errors=True)
        return freed

    def _entry(self, fingerprint: str) -> Path:
        return self.folder / "chunks" / fingerprint

    def _entries(self) -> list[_Entry]:
        return [entry for folder in _listed(self.folder / "chunks") if (entry := _look(folder)) is not None]

    def _notes(self) -> list[dict]:
        notes = []
        for path in _listed(self.folder / "films"):
            with contextlib.suppress(OSError, ValueError, RecursionError):  # a list is no reason to fail
                note = json.loads(path.read_bytes())
                if isinstance(note, dict) and {"title", "output", "chunks"} <= note.keys():
                    notes.append(note)
        return notes

    def _read(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError:  # gone, another user's, or too many files are open: it may be sound
            return None
        body = unseal(data)
        if body is None:
            with contextlib.suppress(OSError):
                path.unlink()  # so that a sound one can take its place
        return body

    def _write(self, path: Path, data: bytes) -> None:
        try:
            self._write_once(path, data)
        except FileNotFoundError:  # another process has just removed the folder
            self._write_once(path, data)

    def _write_once(self, path: Path, data: bytes) -> None:
        if machine.NO_HOME in path.parents:
            raise OSError(machine.NO_HOME_MESSAGE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            new.write_bytes(data)

    def _make_room(self, num_bytes: int) -> bool:
        """Whether so many more bytes may be kept, now that older chunks have gone for them."""
        if self._unlisted_bytes + num_bytes > LISTED_SHARE * self._most_bytes():
            self._list()
        most = self._most_bytes()
        while self._oldest and self._num_bytes + num_bytes > most:
            listed = heapq.heappop(self._oldest)
            entry = _look(listed.path)
            if entry is None:
                self._num_bytes -= listed.num_bytes
            elif entry.last_used > listed.last_used:
                heapq.heappush(self._oldest, entry)
            elif not _is_promised(entry.path) and self._remove(entry.path):
                self._num_bytes -= entry.num_bytes
        return self._num_bytes + num_bytes <= most

    def _most_bytes(self) -> int:
        if self._limit is not None:
            return self._limit
        return min(LIMIT_BYTES, int(LIMIT_SHARE * (machine.disk_free_bytes(self.folder) + self._num_bytes)))

    def _list(self) -> None:
        self._oldest = self._entries()
        heapq.heapify(self._oldest)
        self._num_bytes, self._unlisted_bytes = sum(entry.num_bytes for entry in self._oldest), 0

    def _remove(self, entry: Path) -> bool:
        """Whether it has gone, which another user's may not."""
        shutil.rmtree(entry, ignore_errors=True)
        return not entry.exists()


def _look(folder: Path) -> _Entry | None:
    """What is there of a chunk; None if another process has just removed it, or it may not be looked at."""
    try:
        num_bytes = sum(file.stat().st_size for file in os.scandir(folder))
        return _Entry(folder.stat().st_mtime, folder, num_bytes)
    except OSError:
        return None


def _is_promised(entry: Path) -> bool:
    try:
        return time.time() - (entry / PROMISED).stat().st_mtime < PROMISED_DAYS * 86400
    except OSError:
        return False


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
