"""Every file of a checkpoint looked at: there, whole, and, in the Hub cache, the bytes that were published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from helios_cli.errors import CheckpointError
from helios_cli.weights.checkpoint import TOKENIZER, WEIGHT_STEMS, files_of, missing_files
from helios_cli.weights.client import DIGEST
from helios_cli.weights.files import digest_of, read_header, read_json, read_tensors
from helios_cli.weights.tokenizer import MAX_TOKENIZER_BYTES, check_tokenizer


@dataclass(frozen=True)
class FileCheck:
    """One file's result. `method`: what was compared; `problem` is None if it is in order."""

    name: str
    bytes: int
    method: str
    problem: str | None = None


def bytes_to_read(path: Path) -> int:
    """What `verify` will hash of the checkpoint at `path`."""
    return sum((path / name).stat().st_size for name in files_of(path) if _published_digest(path / name))


def verify(path: Path, advance: Callable[[int], None]) -> Iterator[FileCheck]:
    """Check the files of the checkpoint folder `path` one after the other; bad ones do not stop it.

    Sizes, headers and JSON are always checked. A file of the Hub cache is also read whole and compared with the digest
    that names its blob; `advance` is told the bytes read.
    """
    for name in missing_files(path):
        yield FileCheck(name, 0, "presence", "missing")
    for name in files_of(path):
        yield _check(path, name, advance)
    for component, stem in WEIGHT_STEMS.items():
        yield from _check_index(path, component, stem)


def _check(path: Path, name: str, advance: Callable[[int], None]) -> FileCheck:
    file = path / name
    size = file.stat().st_size
    digest = _published_digest(file)
    method = "header" if name.endswith(".safetensors") else "JSON"
    try:
        if method == "header":
            read_header(file)
        else:
            (check_tokenizer if name == TOKENIZER else read_json)(file, MAX_TOKENIZER_BYTES)
    except CheckpointError as error:
        return FileCheck(name, size, method, error.message.removeprefix(f"{file}: "))
    if digest is None:
        return FileCheck(name, size, method)
    found = digest_of(file, git=len(digest) == 40, advance=advance)
    problem = None if found == digest else f"its digest is {found[:12]}…, published was {digest[:12]}…"
    return FileCheck(name, size, "SHA-1" if len(digest) == 40 else "SHA-256", problem)


def _check_index(path: Path, component: str, stem: str) -> Iterator[FileCheck]:
    """The shards against their index, where every one of them can be read; where not, that was reported already."""
    index = path / component / f"{stem}.safetensors.index.json"
    if not index.exists():
        return
    try:
        read_tensors(path / component, stem)
    except CheckpointError as error:
        if error.message.startswith(f"{index}: does not match"):
            problem = error.message.removeprefix(f"{index}: ")
            yield FileCheck(f"{component}/{index.name}", index.stat().st_size, "shards", problem)


def _published_digest(file: Path) -> str | None:
    """The digest the Hub gave for `file`, if it is a link into the cache's blobs, which are named by it.

    SHA-256 (64 digits) of large files, Git's SHA-1 (40) of small ones.
    """
    if not file.is_symlink():
        return None
    blob = Path(os.readlink(file))  # not resolve(): a blob may itself be a link into a store with other names
    known = blob.parent.name == "blobs" and DIGEST.fullmatch(blob.name)
    return blob.name if known else None
