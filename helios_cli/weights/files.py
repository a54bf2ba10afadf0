"""Reads and checks safetensors headers and JSON files, without torch.

A safetensors file is 8 bytes of header length, a JSON header, and the tensors' bytes end to end. They have to add up to
the size of the file, so an incomplete download is detected at once and not in the middle of a render.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from helios_cli.errors import CheckpointError

MAX_HEADER_BYTES = 10_000_000
"""The 14B transformer's headers have 130 kB. The format allows ten times as much, which takes gigabytes to parse."""

MAX_JSON_BYTES = 10_000_000
"""The limit for configs and indexes; the largest published one has 100 kB."""

MAX_DIMENSIONS = 8
"""The limit for a tensor; a convolution's weight has 5."""

MAX_NAME = 500
"""The characters of a tensor's name."""

DTYPE_BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

SHARD = re.compile(r"\w[\w.-]{0,200}\.safetensors", re.ASCII)
READ_BYTES = 1 << 22

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


class TensorInfo(NamedTuple):
    """A tensor's type, shape and place: bytes `begin` to `end` of `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.begin

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def damaged(path: Path, what: str) -> CheckpointError:
    """Return an error about one file, whose hint is the command that checks all files of the model."""
    folder = next((parent for parent in path.parents[:2] if (parent / "model_index.json").exists()), path.parent)
    return CheckpointError(f"{path}: {what}", hint=f"check every file with: helios models verify {folder}")


def shown(value: object) -> str:
    """Return as much of `repr(value)` as fits into a message."""
    text = repr(value[:200] if isinstance(value, str | list) else value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def require_file(path: Path, most: int | None = None) -> int:
    """Return the size of a regular file. Raises CheckpointError for more than `most` bytes, and for a pipe or a device,
    which may never end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file")
    if most is not None and status.st_size > most:
        raise damaged(path, f"has {status.st_size} bytes; at most {most} are read")
    return status.st_size


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a CheckpointError."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict:
    """Read the JSON object in `path`. Raises CheckpointError if it is missing, unreadable, larger than `most` bytes or
    not an object."""
    try:
        with _readable(path):
            require_file(path, most)
            value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, f"holds a JSON {type(value).__name__}, not an object")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read names, types, shapes and places of the tensors of a safetensors file, but no tensor.

    Raises CheckpointError, naming the file, if it is truncated, has extra bytes, or its header contradicts itself.
    """
    header, data_begin, size = _read_header(path)
    header.pop("__metadata__", None)
    return _tensors(path, header, data_begin=data_begin, size=size)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the free text that a safetensors file's header holds by key. Raises CheckpointError as `read_header`."""
    values = _read_header(path)[0].get("__metadata__")
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str)}


def _read_header(path: Path) -> tuple[dict, int, int]:
    """Return the header, the place of the first tensor's bytes, and the size of the file."""
    with _readable(path):
        size = require_file(path)
        with path.open("rb") as file:
            prefix = file.read(8)
            if prefix == b"version ":
                hint = "run `git lfs pull` in the clone"
                raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself", hint=hint)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise damaged(path, f"truncated: {size} of at least 8 bytes")
            if length > MAX_HEADER_BYTES:
                raise damaged(path, f"not a safetensors file (a header of {length} bytes)")
            if 8 + length > size:
                raise damaged(path, f"truncated: {size} of at least {8 + length} bytes")
            text = file.read(length)
    return _parse(path, text), 8 + length, size


def _parse(path: Path, text: bytes) -> dict:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"the header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise damaged(path, "the header is not a JSON object")
    return header


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _tensors(path: Path, header: dict, *, data_begin: int, size: int) -> dict[str, TensorInfo]:
    tensors = {name: _tensor(path, name, entry, data_begin) for name, entry in header.items()}
    position = data_begin
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise damaged(
                path, f"tensor {name} begins at byte {tensor.begin}, but the one before it ends at {position}"
            )
        position = tensor.end
    if size < position:
        raise damaged(path, f"truncated: {size} of {position} bytes")
    if size > position:
        raise damaged(path, f"has {size} bytes, but its header accounts for {position}")
    return tensors


def _tensor(path: Path, name: str, entry: object, data_begin: int) -> TensorInfo:
    _require_name(path, name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"the header's entry for {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise damaged(path, f"tensor {name} has the unknown dtype {shown(dtype)}")
    if not _counts(shape, MAX_DIMENSIONS) or not _counts(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, f"tensor {name} has the shape {shown(shape)} and the offsets {shown(offsets)}")
    begin, end = offsets
    if math.prod(shape) * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise damaged(path, f"tensor {name} ({dtype} {shape}) does not fill the {end - begin} bytes it is given")
    return TensorInfo(name, path, dtype, tuple(shape), data_begin + begin, data_begin + end)


def _require_name(path: Path, name: str) -> None:
    if len(name) > MAX_NAME:
        raise damaged(path, f"has a tensor name of {len(name)} characters")


def _counts(value: object, most: int) -> bool:
    """Return whether `value` is a list of at most `most` byte counts. JSON's `true` is not one."""
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in value)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the paths of a component's safetensors files: the shards in its index, or the single file.

    Raises CheckpointError if there are none; the message names pickle files, which are never opened.
    """
    index = folder / f"{stem}{INDEX_SUFFIX}"
    if index.exists():
        return sorted({folder / shard for shard in _weight_map(index).values()})
    single = folder / f"{stem}.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds {pickles[0]} and no safetensors; pickle files can run code and are never read",
            hint="save the model again with safe_serialization=True",
        )
    raise CheckpointError(f"{folder} holds neither {single.name} nor {index.name}")


def read_tensors(folder: Path, stem: str) -> dict[str, TensorInfo]:
    """Read the headers of a component's files as one, and check them against the shard index if there is one."""
    headers = {file.name: read_header(file) for file in weight_files(folder, stem)}
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    index = folder / f"{stem}{INDEX_SUFFIX}"
    if index.exists():
        _check_index(index, headers)
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Return the index as tensor name -> shard. A shard is a file next to the index, never a path elsewhere."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(index, "has no weight_map")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise damaged(index, f"lists {shown(shard)}, which is not the name of a safetensors file")
        _require_name(index, name)
    return weight_map


def _check_index(index: Path, headers: dict[str, dict[str, TensorInfo]]) -> None:
    weight_map = _weight_map(index)
    absent = [f"{name} (not in {shard})" for name, shard in weight_map.items() if name not in headers[shard]]
    surplus = [
        f"{name} (in {shard}, not listed)"
        for shard, header in headers.items()
        for name in header
        if weight_map.get(name) != shard
    ]
    if absent or surplus:
        raise damaged(index, f"does not match its shards: {some_of(absent + surplus)}")


def some_of(items: list[str], limit: int = 10) -> str:
    """Format a list: `a, b, c`, and the number of items beyond `limit`."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def misfits(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorInfo], is_read: Callable[[str, TensorInfo], bool]
) -> str:
    """Return in words which tensors do not have the `expected` names and shapes, or types that are not read; empty if
    all fit."""
    faults = {
        "missing": [name for name in expected if name not in found],
        "surplus": sorted(name for name in found if name not in expected),
        "mis-shaped": [
            f"{name} ({list(found[name].shape)}, expected {list(shape)})"
            for name, shape in sorted(expected.items())
            if name in found and found[name].shape != shape
        ],
        "of a type that is not read": [
            f"{name} ({info.dtype})" for name, info in sorted(found.items()) if not is_read(name, info)
        ],
    }
    return "; ".join(f"{len(names)} {fault}: {some_of(names)}" for fault, names in faults.items() if names)


def digest_of(file: Path, *, git: bool, advance: Callable[[int], None]) -> str:
    """Return the file's SHA-256, or the SHA-1 of `git`, by which the Hub names small files."""
    digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False) if git else hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(READ_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()
