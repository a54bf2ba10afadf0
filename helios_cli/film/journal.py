"""The journal of a film that is being rendered: which chunks are safe on disk, and which process is rendering.

`<name>.journal` next to the film has one JSON object a line: `run` (a process that works on the film), `film` (what is
made, how it is encoded), and one `chunk` for each that is finished, written after its piece and its state have reached
the disk. A line that was being written when the process died is dropped when the journal is read.

The process that renders holds the file's lock. The kernel releases it when the process ends, however it ends, so a lock
is never stale.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from io import FileIO

from helios_cli.errors import MachineError
from helios_cli.files import sync
from helios_cli.film.claims import Owner
from helios_cli.film.disk import disk_errors, write_synced
from helios_cli.film.growing import Mark
from helios_cli.film.target import Target, check_beside

JOURNAL_VERSION = 1

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems without locks; a film is rendered there all the same."""

RECORD_TYPES = {"chunk": int, "fingerprint": str, "frames": int, "length": int, "digest": str, "state": str}


@dataclass(frozen=True)
class SafeChunk:
    """A chunk that is safe on disk: its fingerprint, the film's mark after it, the SHA-256 of its state file."""

    fingerprint: str
    mark: Mark
    state: str


def recorded_chunks(target: Target) -> int:
    """Return how many chunks the journal of `target` records at the moment, without its lock; 0 without a journal."""
    try:
        with FileIO(target.journal) as file:
            return sum(_has(line, **RECORD_TYPES) for line, _ in _lines(file))
    except OSError:
        return 0


class Journal:
    """The journal of `target`, opened and locked, and created if there is none. Call `close` or `remove` at the end.

    Attributes:
        target: as given.
        encoding: key of the pieces' encoding; "" in a new journal.
        settings: the film's settings, for a message about what has changed.
        records: the finished chunks, from the first.

    Raises MachineError if another process renders the film, InputError if foreign files are in the way.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        with disk_errors(target.journal):
            check_beside(target)
            self._file = _open_locked(target)
        self.encoding = ""
        self.settings: dict[str, str] = {}
        self.records: list[SafeChunk] = []
        self._ends: list[int] = []
        self._file.seek(self._read())
        self._write({"run": _this_run()})

    def begin(self, encoding: str, settings: Mapping[str, str]) -> None:
        """Start anew."""
        self.encoding, self.settings, self.records, self._ends = encoding, dict(settings), [], []
        self._file.seek(0)
        self._write({"run": _this_run()})
        self._write({"film": JOURNAL_VERSION, "encoding": encoding, "settings": self.settings})
        sync(self.target.path.parent)

    def cut(self, count: int) -> None:
        """Keep the first `count` (1 or more) chunks."""
        del self.records[count:], self._ends[count:]
        self._file.seek(self._ends[-1])
        self._write({"run": _this_run()})

    def append(self, fingerprint: str, mark: Mark, state: bytes) -> None:
        """Record a chunk whose piece is in the film and on disk; the film continues after it from `state`."""
        path = self.target.state(len(self.records) % 2)
        is_new = not path.exists()
        with disk_errors(path):
            write_synced(path, state)
            if is_new:
                sync(path.parent)
        chunk = SafeChunk(fingerprint, mark, hashlib.sha256(state).hexdigest())
        self._write({"chunk": len(self.records), "fingerprint": fingerprint, **asdict(mark), "state": chunk.state})
        self.records.append(chunk)
        self._ends.append(self._file.tell())

    def state(self, index: int) -> bytes | None:
        """Return the state after chunk `index`, or None if it is missing or damaged; only the last two are kept."""
        path = self.target.state(index % 2)
        try:
            with disk_errors(path, "read"):
                data = path.read_bytes()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == self.records[index].state else None

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Remove the states, then the journal, which proves that they are ours. The lock goes last."""
        for slot in range(2):
            self.target.state(slot).unlink(missing_ok=True)
        self.target.journal.unlink(missing_ok=True)
        self._file.close()

    def _read(self) -> int:
        """Read what earlier runs wrote. Returns where the last good line ends."""
        end = 0
        for line, end_of_line in _lines(self._file):
            if _has(line, film=int, encoding=str, settings=dict) and line["film"] == JOURNAL_VERSION:
                self.encoding, self.settings = line["encoding"], line["settings"]
            elif self.encoding and _has(line, **RECORD_TYPES) and line["chunk"] == len(self.records):
                mark = Mark(line["frames"], line["length"], line["digest"])
                self.records.append(SafeChunk(line["fingerprint"], mark, line["state"]))
                self._ends.append(end_of_line)
            elif "run" not in line:
                break
            end = end_of_line
        return end

    def _write(self, line: dict) -> None:
        """Write a line at the file's position, and nothing after it; it is on disk when this returns."""
        data = json.dumps(line).encode() + b"\n"
        with disk_errors(self.target.journal):
            self._file.truncate()
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())


def _has(line: dict, **types: type) -> bool:
    return all(type(line.get(name)) is kind for name, kind in types.items())


def _lines(file: FileIO) -> Iterator[tuple[dict, int]]:
    """Yield the whole lines of the file up to the first that is not a JSON object, each with where it ends."""
    file.seek(0)
    end = 0
    for text in file.read().splitlines(keepends=True):
        end += len(text)
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not text.endswith(b"\n") or not isinstance(line, dict):
            return
        yield line, end


def _open_locked(target: Target) -> FileIO:
    while True:
        # Unbuffered: what a full disk did not take must not be tried again when the file is closed.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = FileIO(os.open(target.journal, flags, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(target, file) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        try:
            if os.path.samestat(os.fstat(file.fileno()), target.journal.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()  # another run finished the film in between, and removed its journal


def _busy(target: Target, file: FileIO) -> MachineError:
    runs = [line["run"] for line, _ in _lines(file) if _has(line, run=dict)]
    file.close()
    who = "another process"
    if runs and runs[-1].keys() >= {"pid", "host", "started"}:
        who = f"process {runs[-1]['pid']} on {runs[-1]['host']} since {runs[-1]['started']}"
    return MachineError(f"{target.path} is being rendered by {who}", hint="wait for it, or write another film with -o")


def _this_run() -> dict:
    me = Owner.here()
    return {"pid": me.pid, "host": me.host, "started": me.started}
