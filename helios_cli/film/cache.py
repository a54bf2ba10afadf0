"""The cache of finished chunks, found again by fingerprint wherever a film needs the same chunk.

`pieces/chunks/<fingerprint>/` holds a chunk's `state` and its encoded pieces, each sealed with its SHA-256. Any number
of processes and users may use it at once: files appear under their names only when they are whole, missing or damaged
ones count as absent, and unreadable ones are left alone. The least recently used chunk is removed first, except for
those promised to an unfinished film (`promise`). Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from helios_cli import machine
from helios_cli.files import replacing

LIMIT_BYTES = 10 * 10**9
LIMIT_SHARE = 0.1
"""Share of the disk's free space, counted without the cache, that limits it where that is less."""

UNLISTED_SHARE = 0.02
"""Share of the limit that a process adds before it lists the cache again: that takes 0.3 s for 6,000 chunks."""

PROMISED_DAYS = 7
PROMISED = "promised"
"""The file that keeps a chunk for PROMISED_DAYS from the file's date on."""

SEAL = struct.Struct(">32sQ")
"""SHA-256 and length of the bytes that follow."""


class KeptFilm(NamedTuple):
    """A film with chunks in the cache. `last_used` is in seconds since the epoch; films may share chunks."""

    title: str
    output: str
    chunks: int
    kept_chunks: int
    num_bytes: int
    last_used: float


class _Entry(NamedTuple):
    """A chunk's folder; entries sort by last use."""

    last_used: float
    path: Path
    num_bytes: int


class Cache:
    """The cache in `folder` (default: in HELIOS_HOME), of at most `limit` bytes. Raises OSError in `put` only."""

    def __init__(self, folder: Path | None = None, *, limit: int | None = None) -> None:
        self.folder = folder or machine.home() / "pieces"
        self._limit = limit
        self._room = 0  # bytes that this process may add before it lists the cache again

    def has(self, fingerprint: str) -> bool:
        """Return whether the chunk is there, readable and of full length. Only `state` notices flipped bits."""
        try:
            with (self._entry(fingerprint) / "state").open("rb") as file:
                head = file.read(SEAL.size)
                return len(head) == SEAL.size and os.fstat(file.fileno()).st_size == SEAL.size + SEAL.unpack(head)[1]
        except OSError:
            return False

    def promise(self, fingerprints: Sequence[str]) -> bool:
        """Keep all these chunks for PROMISED_DAYS. Returns whether they are there."""
        if not all(self.has(fingerprint) for fingerprint in fingerprints):
            return False
        try:
            for fingerprint in fingerprints:
                (self._entry(fingerprint) / PROMISED).touch()
        except OSError:  # removed in between, or another user's
            return False
        return all(self.has(fingerprint) for fingerprint in fingerprints)

    def state(self, fingerprint: str) -> bytes | None:
        """Return the state after the chunk, which holds its latents, or None."""
        with contextlib.suppress(OSError):  # absent, or another user's: then its age does not matter
            os.utime(self._entry(fingerprint))
        return _unsealed(self._entry(fingerprint) / "state")

    def piece(self, fingerprint: str, key: str) -> bytes | None:
        """Return the chunk's piece in the encoding and with the frames that `key` stands for, or None."""
        return _unsealed(self._entry(fingerprint) / f"{key}.piece")

    def put(self, fingerprint: str, state: bytes, key: str, piece: bytes) -> None:
        """Add a chunk, and remove older ones where it needs room. OSError if the disk does not take it."""
        bodies = {self._entry(fingerprint) / "state": state, self._entry(fingerprint) / f"{key}.piece": piece}
        new = {path: _seal(body) + body for path, body in bodies.items() if not path.exists()}
        if self._make_room(sum(map(len, new.values()))):
            for path, data in new.items():
                _write(path, data)

    def note_film(self, title: str, output: str, fingerprints: Sequence[str]) -> None:
        """Record which chunks a film has, for `films`."""
        name = hashlib.sha256(os.fsencode(output)).hexdigest()[:16]
        data = {"title": title, "output": output, "chunks": list(fingerprints)}
        _write(self.folder / "films" / f"{name}.json", json.dumps(data).encode())

    def films(self) -> list[KeptFilm]:
        """Return the films with chunks in the cache, the last used first."""
        entries = {entry.path.name: entry for entry in self._entries()}
        films = []
        for path in _listed(self.folder / "films"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):  # damaged notes
                note = json.loads(path.read_bytes())
                title, output, chunks = note["title"], note["output"], note["chunks"]
                kept = [entries[chunk] for chunk in set(chunks) if chunk in entries and self.has(chunk)]
                if kept:
                    num_bytes, last_used = sum(entry.num_bytes for entry in kept), max(kept).last_used
                    films.append(KeptFilm(title, output, len(chunks), len(kept), num_bytes, last_used))
        return sorted(films, key=lambda film: -film.last_used)

    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries())

    def clear(self) -> int:
        """Remove everything that may be removed. Returns the bytes that its chunks took."""
        found = self.num_bytes()
        for name in ("chunks", "films"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return found - self.num_bytes()

    def _entry(self, fingerprint: str) -> Path:
        return self.folder / "chunks" / fingerprint

    def _entries(self) -> list[_Entry]:
        entries = []
        for folder in _listed(self.folder / "chunks"):
            with contextlib.suppress(OSError):  # removed by another process, or not readable
                num_bytes = sum(file.stat().st_size for file in os.scandir(folder))
                entries.append(_Entry(folder.stat().st_mtime, folder, num_bytes))
        return entries

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the least recently used chunks until `num_bytes` more fit. Returns whether they do."""
        if num_bytes <= self._room:
            self._room -= num_bytes
            return True
        entries = sorted(self._entries())
        total = sum(entry.num_bytes for entry in entries)
        most = self._limit
        if most is None:
            most = min(LIMIT_BYTES, int(LIMIT_SHARE * (machine.disk_free_bytes(self.folder) + total)))
        if num_bytes > most:
            return False
        spare = int(UNLISTED_SHARE * most)
        after = most - num_bytes - (spare if num_bytes < spare else 0)
        for entry in entries:
            if total <= after:
                break
            if not _is_promised(entry.path):
                shutil.rmtree(entry.path, ignore_errors=True)
                total -= 0 if entry.path.exists() else entry.num_bytes  # another user's may stay
        self._room = max(0, min(spare, most - total - num_bytes))
        return total + num_bytes <= most


def _seal(body: bytes) -> bytes:
    return SEAL.pack(hashlib.sha256(body).digest(), len(body))


def _unsealed(path: Path) -> bytes | None:
    """Return the sealed bytes of a file; None if it cannot be read, or is damaged: then it is removed."""
    try:
        data = path.read_bytes()
    except OSError:  # absent, another user's, or too many files are open: it may be sound
        return None
    if _seal(data[SEAL.size :]) == data[: SEAL.size]:
        return data[SEAL.size :]
    with contextlib.suppress(OSError):
        path.unlink()  # so that a sound one can take its place
    return None


def _write(path: Path, data: bytes) -> None:
    if machine.NO_HOME in path.parents:
        raise OSError(machine.NO_HOME_MESSAGE)
    for is_last in (False, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                new.write_bytes(data)
            return
        except FileNotFoundError:  # another process has just removed the folder
            if is_last:
                raise


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
