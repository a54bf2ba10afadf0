"""Kept pieces: finished chunks of films, found again by fingerprint wherever the same chunk is asked for.

`pieces/chunks/<fingerprint>/` holds a chunk's `state` and its encoded pieces, each sealed with its SHA-256. Any number
of processes may use it at once: files appear under their names only when they are whole, and what has gone or is
damaged is simply not there. The chunk that was used longest ago goes first. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from helios_cli import machine
from helios_cli.engine.disk import seal, unseal

LIMIT_BYTES = 10 * 10**9
LIMIT_SHARE = 0.1
"""Of the disk's free space without them, where that is less."""

ABANDONED_SECONDS = 3600
"""Age at which a file that is still being written belongs to a process that died."""


@dataclass(frozen=True)
class KeptFilm:
    """A film of which chunks are kept. `last_used` is seconds since the epoch; chunks may belong to several films."""

    title: str
    output: str
    chunks: int
    kept_chunks: int
    num_bytes: int
    last_used: float


@dataclass(frozen=True)
class _Entry:
    """A chunk's folder."""

    path: Path
    num_bytes: int
    last_used: float


class Cache:
    """The kept pieces in `folder` (default: in HELIOS_HOME), `limit` bytes at most. Raises OSError in `put` only."""

    def __init__(self, folder: Path | None = None, *, limit: int | None = None) -> None:
        self.folder = folder or machine.home() / "pieces"
        self._limit = limit

    def has(self, fingerprint: str) -> bool:
        """Whether the chunk is kept, as far as can be seen without reading it."""
        return os.path.exists(self._entry(fingerprint) / "state")

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
        if not self._make_room(len(state) + len(piece)):
            return
        entry = self._entry(fingerprint)
        for name, body in (("state", state), (f"{key}.piece", piece)):
            if not (entry / name).exists():
                self._write(entry / name, seal(body))

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
            kept = [entries[chunk] for chunk in set(note["chunks"]) if chunk in entries]
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
        entries = []
        for folder in _listed(self.folder / "chunks"):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                num_bytes = sum(file.stat().st_size for file in os.scandir(folder))
                entries.append(_Entry(folder, num_bytes, folder.stat().st_mtime))
        return entries

    def _notes(self) -> list[dict]:
        notes = []
        for path in _listed(self.folder / "films"):
            with contextlib.suppress(OSError, ValueError):  # gone, or half of it: a list is no reason to fail
                note = json.loads(path.read_bytes())
                if isinstance(note, dict) and {"title", "output", "chunks"} <= note.keys():
                    notes.append(note)
        return notes

    def _read(self, path: Path) -> bytes | None:
        body = unseal(path)
        if body is None:
            with contextlib.suppress(OSError):
                path.unlink()  # so that a sound one can take its place
        return body

    def _write(self, path: Path, data: bytes) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=self._scratch())
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, path)
            except FileNotFoundError:  # another process has just removed the folder
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _scratch(self) -> Path:
        """Where files are written, on the same disk as their place; what dead processes left there goes."""
        folder = self.folder / "new"
        folder.mkdir(parents=True, exist_ok=True)
        for path in _listed(folder):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        return folder

    def _make_room(self, num_bytes: int) -> bool:
        """Whether so many more bytes may be kept, now that older chunks have gone for them."""
        entries = sorted(self._entries(), key=lambda entry: entry.last_used)
        total = sum(entry.num_bytes for entry in entries)
        limit = self._limit
        if limit is None:
            limit = min(LIMIT_BYTES, int(LIMIT_SHARE * (machine.disk_free_bytes(self.folder) + total)))
        for entry in entries:
            if total + num_bytes <= limit:
                break
            self._remove(entry.path)
            total -= entry.num_bytes
        return total + num_bytes <= limit

    def _remove(self, entry: Path) -> None:
        shutil.rmtree(entry, ignore_errors=True)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
