"""Reports on models for `helios models`: an inventory, a description of one, and checks of its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helios_cli.errors import CheckpointError
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import TOKENIZER, WEIGHT_STEMS, Checkpoint, Component, files_of, missing_files
from helios_cli.weights.client import DIGEST
from helios_cli.weights.files import digest_of, read_header, read_json, read_tensors
from helios_cli.weights.names import EMBEDDED, EMBEDDED_FOLDER, KNOWN, known_repo
from helios_cli.weights.source import Source
from helios_cli.weights.tokenizer import MAX_TOKENIZER_BYTES, check_tokenizer

SUMMARY_KEYS = {
    "transformer": ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "text_dim"),
    "text_encoder": ("num_layers", "num_heads", "d_model", "d_ff", "vocab_size"),
    "vae": ("base_dim", "dim_mult", "num_res_blocks", "z_dim"),
}
"""The numbers of a component's config that distinguish models."""


def inventory() -> list[dict[str, Any]]:
    """List the known models, then the other Helios pipelines in the Hub cache.

    `state` is `ready`, `untrained`, `incomplete`, `damaged` or `not downloaded`; `bytes` is the size on the disk.
    """
    models = [_entry(EMBEDDED, Source(folder=EMBEDDED_FOLDER))]
    models += [_entry(known.name, Source(repo=known.repo, revision=known.revision)) for known in KNOWN.values()]
    for repo, commit in hub.cached_snapshots():
        known = known_repo(repo)
        if known is None or known.revision != commit:
            models.append(_entry("", Source(repo=repo, revision=commit)))
    return models


def _entry(name: str, source: Source) -> dict[str, Any]:
    folder = source.folder or hub.snapshot_of(source)
    kind = name if name in KNOWN else None
    entry: dict[str, Any] = {
        "name": name,
        "repo": source.repo or None,
        "revision": source.revision or None,
        "kind": kind,
    }
    if folder is None:
        return {**entry, "state": "not downloaded", "bytes": None, "path": None}
    entry |= {"bytes": sum((folder / file).stat().st_size for file in files_of(folder)), "path": str(folder)}
    if missing_files(folder):
        return {**entry, "state": "incomplete"}
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        return {**entry, "state": "damaged", "problem": error.message}
    return {**entry, "kind": checkpoint.kind, "state": "ready" if checkpoint.trained else "untrained"}


def describe(checkpoint: Checkpoint, source: Source) -> dict[str, Any]:
    """Describe an opened checkpoint by its headers and configs."""
    snapshot = None if source.folder else checkpoint.path.name
    return {
        "path": str(checkpoint.path),
        "repo": source.repo or None,
        "revision": snapshot,
        "kind": checkpoint.kind,
        "scheduler": checkpoint.scheduler["_class_name"],
        "trained": checkpoint.trained,
        "knows": checkpoint.knows,
        "native_size": "x".join(map(str, checkpoint.native_size)),
        "preset": asdict(checkpoint.preset),
        "components": [_describe(component) for component in checkpoint.components.values()],
        "fingerprint": checkpoint.fingerprint(),
    }


def _describe(component: Component) -> dict[str, Any]:
    config = component.config
    return {
        "name": component.name,
        "parameters": component.parameters,
        "bytes": component.bytes,
        "dtypes": list(component.dtypes),
        "tensors": len(component.tensors),
        "files": len({tensor.file for tensor in component.tensors.values()}),
        "shape": ", ".join(f"{key} {config[key]}" for key in SUMMARY_KEYS[component.name] if key in config),
    }


@dataclass(frozen=True)
class FileCheck:
    """The result of checking a file. `method` is what was compared; `problem` is None if it is good."""

    name: str
    bytes: int
    method: str
    problem: str | None = None


def bytes_to_read(path: Path) -> int:
    """Return the bytes of the checkpoint folder `path` that `verify` will hash."""
    return sum((path / name).stat().st_size for name in files_of(path) if _published_digest(path / name))


def verify(path: Path, advance: Callable[[int], None]) -> Iterator[FileCheck]:
    """Check the files of the checkpoint folder `path`, and go on after a bad one.

    Sizes, headers and JSON are always checked. A file of the Hub cache is also hashed and compared with the digest that
    names its blob; `advance` gets the bytes read.
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
    own = digest_of(file, git=len(digest) == 40, advance=advance)
    problem = None if own == digest else f"its digest is {own[:12]}…, but the published one is {digest[:12]}…"
    return FileCheck(name, size, "SHA-1" if len(digest) == 40 else "SHA-256", problem)


def _check_index(path: Path, component: str, stem: str) -> Iterator[FileCheck]:
    """Check the shards against their index, if all of them can be read; else that was reported before."""
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
    """Return the Hub's digest of `file` if it is a link to a blob of the cache, which has that name.

    It is SHA-256 (64 digits) for a large file, Git's SHA-1 (40 digits) for a small one.
    """
    if not file.is_symlink():
        return None
    blob = Path(os.readlink(file))  # not resolve(): a blob may itself be a link into a store with other names
    return blob.name if blob.parent.name == "blobs" and DIGEST.fullmatch(blob.name) else None
