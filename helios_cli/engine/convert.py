"""Makes a local copy of a checkpoint in smaller data types, laid out for streaming.

Transformer and text encoder are stored one block a file, so that a block is one contiguous run of bytes that begins on
a page of the disk; everything outside the blocks is in the first file. An index lists them, as `save_pretrained` does.

    bfloat16    every tensor in bfloat16 except those that stay float32 in every render: a render in bfloat16 from the
                copy equals one from the original bit for bit. diffusers and transformers load it.
    int8, nf4   the matrices of the transformer's blocks, other than those that only prompts need, in 8 or 4 bits
                with float32 scales (`model.low_bit`), the rest as above. Renders keep them so in memory, and
                widen each for its product. The layout is helios's own.
    float8      the transformer's matrices that `--quant fp8` quantizes as e4m3 values under their own name, with
                float32 scales of their rows under that name and `_scale` (`weights.fp8`); the rest as above. The
                layout is helios's own. Without `--quant fp8` the values times their scales are used.

LoRA files of the checkpoint (`weights.adapters`) are folded in float32 before a value is rounded, so the copy needs
them no more.

The VAE is copied unchanged: it takes half a gigabyte, and other programs run it in float32.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from helios_cli import machine
from helios_cli.errors import CheckpointError, InputError, MachineError
from helios_cli.model import dit
from helios_cli.model.low_bit import DTYPES, LOW_BITS, NEIGHBOURS, LowBit, round_weight, shapes
from helios_cli.units import format_bytes
from helios_cli.weights.checkpoint import MODEL_INDEX, WEIGHT_STEMS, Checkpoint, Component, files_of
from helios_cli.weights.files import INDEX_SUFFIX, TensorInfo, read_header
from helios_cli.weights.fit import ALIASES
from helios_cli.weights.fp8 import SCALE_SUFFIX, is_fp8, is_scale, quantize_weight
from helios_cli.weights.layout import shard_name, write_index
from helios_cli.weights.low_bit import is_low_bit
from helios_cli.weights.reader import FLOAT_DTYPES, SCALED_DTYPES, StoredTensor, WeightFiles

Target = Literal["bfloat16", "float8", "int8", "nf4"]

PAGE = 4096

BLOCK = {"transformer": re.compile(r"blocks\.(\d+)\."), "text_encoder": re.compile(r"encoder\.block\.(\d+)\.")}

CODES = {torch.float32: "F32", torch.bfloat16: "BF16"} | {dtype: code for code, dtype in SCALED_DTYPES.items()}


@dataclass(frozen=True)
class Converted:
    """A finished copy: the `bytes` of its weights, and the number of `tensors` that were read back and compared."""

    path: Path
    bytes: int
    tensors: int


@dataclass(frozen=True)
class _New:
    """A tensor of the copy, and the source of its values."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: StoredTensor
    low_bit: LowBit | None = None

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def convert(checkpoint: Checkpoint, out: Path, target: Target, advance: Callable[[int], None]) -> Converted:
    """Write the copy to `out`, a new or empty folder, and read it back. `advance` gets the number of bytes written.

    Raises InputError for a folder that is in use, MachineError for a full disk, CheckpointError for weights that cannot
    be read or a copy that differs from what was written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder", hint="name another folder with --out")
    plans = {name: _shards(checkpoint.component(name), target) for name in BLOCK}
    needed, free = bytes_to_write(checkpoint, target), machine.disk_free_bytes(out)
    if needed > free:
        raise MachineError(f"{out} needs {format_bytes(needed)}, but only {format_bytes(free)} is free there")
    tensors = 0
    for name, shards in plans.items():
        tensors += _write_component(checkpoint.component(name), out, shards, advance)
    _copy_rest(checkpoint, out, advance)
    Checkpoint.open(out)
    return Converted(out, needed, tensors)


def bytes_to_write(checkpoint: Checkpoint, target: Target) -> int:
    """Return the size of the copy's weights."""
    shards = [shard for name in BLOCK for shard in _shards(checkpoint.component(name), target)]
    return sum(new.bytes for shard in shards for new in shard) + checkpoint.component("vae").bytes


def _shards(component: Component, target: Target) -> list[list[_New]]:
    """Return the tensors of each file: first those outside the blocks, then block by block.

    Matrices come first, in the order in which they are streamed."""
    groups: dict[int, list[_New]] = {}
    aliases = ALIASES.get(component.name, {})
    for name, info in component.tensors.items():
        if aliases.get(name) in component.tensors or is_scale(name):
            continue
        if info.dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"{info.file}: {name} is {info.dtype}, which cannot be converted", hint="convert the published weights"
            )
        place = BLOCK[component.name].match(name)
        groups.setdefault(int(place[1]) if place else -1, []).extend(_new(name, info, component, target))
    return [sorted(groups[index], key=lambda new: len(new.shape) != 2) for index in sorted(groups)]


def _new(name: str, info: TensorInfo, component: Component, target: Target) -> Iterator[_New]:
    source = StoredTensor(info, terms=component.terms.get(name, ()))
    is_transformer = component.name == "transformer"
    if is_transformer and target == "float8" and is_fp8(name):
        yield _New(name, info.shape, torch.float8_e4m3fn, source)
        yield _New(name + SCALE_SUFFIX, info.shape[:1], torch.float32, source)
        return
    if is_transformer and target in LOW_BITS and is_low_bit(name):
        if target == "nf4" and info.shape[1] % NEIGHBOURS:
            what = f"{name} has {info.shape[1]} inputs; nf4 needs multiples of {NEIGHBOURS}"
            raise InputError(what, hint="convert to int8")
        values, scales = shapes(info.shape[0], info.shape[1], target)
        yield _New(name, values, DTYPES[target], source, target)
        yield _New(name + SCALE_SUFFIX, scales, torch.float32, source, target)
        return
    island = is_transformer and not dit.FP32_ISLANDS.isdisjoint(name.split("."))
    yield _New(name, info.shape, torch.float32 if island else torch.bfloat16, source)


def _write_component(component: Component, out: Path, shards: list[list[_New]], advance: Callable[[int], None]) -> int:
    """Write the files of a component and their index; return how many tensors were compared."""
    (out / component.name).mkdir(parents=True)
    weight_map: dict[str, str] = {}
    with contextlib.closing(WeightFiles()) as files:
        for number, shard in enumerate(shards, start=1):
            path = out / component.name / shard_name(component.name, number, len(shards))
            _write_shard(path, shard, files, advance)
            _compare(path, shard, files)
            weight_map.update({new.name: path.name for new in shard})
    write_index(out, component.name, weight_map, sum(new.bytes for shard in shards for new in shard))
    return len(weight_map)


def _write_shard(path: Path, shard: list[_New], files: WeightFiles, advance: Callable[[int], None]) -> None:
    """Write one file: a header padded to a page, then the tensors end to end."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for new in shard:
        header[new.name] = {
            "dtype": CODES[new.dtype],
            "shape": list(new.shape),
            "data_offsets": [place, place + new.bytes],
        }
        place += new.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for new in shard:
            for piece in _values(new, files):
                file.write(cast(bytes, piece.contiguous().view(-1).view(torch.uint8).numpy()))
                advance(piece.nbytes)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # the comparison must read the disk, not the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _values(new: _New, files: WeightFiles) -> Iterator[Tensor]:
    """Yield the values of a tensor of the copy, a few rows at a time."""
    scaled = new.dtype in SCALED_DTYPES.values() or is_scale(new.name)
    for first, last in new.source.pieces():
        shape = (last - first, *new.source.info.shape[1:]) if new.source.info.shape else ()
        values = torch.empty(shape, dtype=torch.float32 if scaled else new.dtype)
        files.read(new.source, values, (first, last))
        if scaled:
            rounded, scales = round_weight(values, new.low_bit) if new.low_bit else quantize_weight(values)
            values = scales if is_scale(new.name) else rounded
        yield values


def _compare(path: Path, shard: list[_New], files: WeightFiles) -> None:
    """Raise CheckpointError unless every tensor of the file equals its source."""
    written = read_header(path)
    with contextlib.closing(WeightFiles()) as copy:
        for new in shard:
            begin = 0
            for expected in _values(new, files):
                end = begin + (len(expected) if expected.dim() else 1)
                found = torch.empty_like(expected)
                copy.read(StoredTensor(written[new.name]), found, (begin, end), check=False)
                if not torch.equal(found.view(-1).view(torch.uint8), expected.contiguous().view(-1).view(torch.uint8)):
                    raise CheckpointError(f"{path}: {new.name} was not stored as it was written", hint="check the disk")
                begin = end


def _copy_rest(checkpoint: Checkpoint, out: Path, advance: Callable[[int], None]) -> None:
    """Copy the VAE and the JSON files, and last the one that makes a folder a checkpoint."""
    weights = {tensor.file for name in BLOCK for tensor in checkpoint.component(name).tensors.values()}
    indexes = tuple(f"{name}/{WEIGHT_STEMS[name]}{INDEX_SUFFIX}" for name in BLOCK)
    rest = [name for name in files_of(checkpoint.path) if checkpoint.path / name not in weights and name not in indexes]
    for name in sorted(rest, key=lambda name: name == MODEL_INDEX):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint.path / name, out / name)
        if name.endswith(".safetensors"):
            advance((out / name).stat().st_size)
    config = out / "text_encoder" / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    types = {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in values}
    config.write_text(json.dumps({**values, **types}, indent=2) + "\n", encoding="utf-8")
