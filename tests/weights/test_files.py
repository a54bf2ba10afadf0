from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from helios_cli.errors import CheckpointError
from helios_cli.weights.files import read_header, read_tensors
from support.tiers import examples


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool"])
def test_places_are_those_of_the_safetensors_writer(tmp_path, dtype):
    tensors = {"a": torch.ones(3, 5), "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 7), "z": torch.arange(6.0)}
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    path = tmp_path / "x.safetensors"
    save_torch(tensors, path, metadata={"format": "pt"})
    found = read_header(path)
    assert {name: info.shape for name, info in found.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    for name, info in found.items():
        stored = path.read_bytes()[info.begin : info.end]
        assert stored == tensors[name].view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated: 0 of at least 8 bytes"),
        (b"\x10\0\0", "truncated: 3 of at least 8 bytes"),
        (struct.pack("<Q", 500) + b"{}", "truncated: 10 of at least 508 bytes"),
        (struct.pack("<Q", 10**9), "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (file_of(b"{'a'}"), "not valid JSON"),
        (file_of(b"\xff\xfe"), "not valid JSON"),
        (file_of(b"[" * 100_000), "not valid JSON"),
        (file_of([1]), "not a JSON object"),
        (file_of(b'{"a": 1, "a": 2}'), "twice"),
        (file_of({"a": entry()}, b"123"), "truncated: "),
        (file_of({"a": entry()}, b"12345"), "bytes, but its header accounts for"),
        (file_of({"a": entry(offsets=(4, 0))}, b"1234"), "tensor a has"),
        (file_of({"a": entry(offsets=(-4, 0))}, b"1234"), "tensor a has"),
        (file_of({"a": entry(offsets=(0, 10**4000))}, b"1234"), "tensor a has"),
        (file_of({"a": entry(shape=(True, 4))}, b"1234"), "tensor a has"),
        (file_of({"a": entry(shape=(5,))}, b"1234"), "does not fill"),
        (file_of({"a": entry(dtype="F32")}, b"1234"), "does not fill"),
        (file_of({"a": entry(dtype="Q4")}, b"1234"), "unknown dtype 'Q4'"),
        (file_of({"a": {"dtype": "U8"}}, b"1234"), "entry for a"),
        (file_of({"a": entry(), "b": entry()}, b"1234"), "tensor b begins at"),
        (file_of({"a": entry(), "b": entry(offsets=(6, 10))}, b"1234567890"), "tensor b begins at"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        read_header(path)
    assert message in raised.value.message
    assert str(path) in raised.value.message
    assert raised.value.hint


def test_every_truncation_of_a_real_file_is_found(tmp_path):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file({"a": np.ones((2, 3), "float32"), "b": np.zeros(5, "int16")}, whole)
    content = whole.read_bytes()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=rf"truncated: {length} of"):
            read_header(cut)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path)


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=64) | st.builds(file_of, st.binary(max_size=64), st.binary(max_size=16)))
@example(file_of({}))
def test_arbitrary_bytes_raise_nothing_else(tmp_path_factory, content):
    check_only_checkpoint_errors(tmp_path_factory, content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "F4", "X"]) | json_values,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-1, 2**70), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=examples(300), deadline=None)
@given(st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3), st.binary(max_size=16))
def test_arbitrary_headers_raise_nothing_else(tmp_path_factory, header, data):
    check_only_checkpoint_errors(tmp_path_factory, file_of(header, data))


def check_only_checkpoint_errors(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "arbitrary.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    # What passes is consistent: the tensors fill the file to its end without a gap.
    assert sum(info.bytes for info in tensors.values()) + 8 + int.from_bytes(content[:8], "little") == len(content)


STEM = "diffusion_pytorch_model"


def test_shards_are_read_as_one(checkpoint):
    tensors = read_tensors(checkpoint / "transformer", STEM)
    assert {name: (tensors[name].shape, tensors[name].file.name[-25:]) for name in ("weight", "bias")} == {
        "weight": ((4, 3), "00001-of-00002.safetensors"[-25:]),
        "bias": ((4,), "00002-of-00002.safetensors"[-25:]),
    }


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"weight": 1, "bias": 3}, "00003-of-00002.safetensors is missing"),
        ({"weight": 1, "bias": 1}, r"bias \(not in .*00001"),
        ({"weight": 1, "bias": 2, "ghost": 2}, r"ghost \(not in .*00002"),
        ({"weight": 1}, None),
        ({"weight": 2, "bias": 1}, r"weight \(not in .*00002.*bias \(not in .*00001"),
        ({"weight": "../escape.safetensors"}, "not the name of a safetensors file"),
        ({"weight": "pytorch_model-1.bin"}, "not the name of a safetensors file"),
        ({"weight": 7.5}, "not the name of a safetensors file"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_lies(checkpoint, weight_map, message):
    def shard(number):
        return f"{STEM}-{number:05d}-of-00002.safetensors" if isinstance(number, int) else number

    folder = checkpoint / "transformer"
    if isinstance(weight_map, dict):
        weight_map = {name: shard(number) for name, number in weight_map.items()}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if message is None:
        assert set(read_tensors(folder, STEM)) == {"weight"}  # the second shard is nobody's
        return
    with pytest.raises(CheckpointError, match=message):
        read_tensors(folder, STEM)


def test_a_tensor_that_the_index_leaves_out(checkpoint):
    folder = checkpoint / "transformer"
    save_file(
        {"weight": np.ones((4, 3), "float32"), "stowaway": np.ones(2, "float32")},
        folder / f"{STEM}-00001-of-00002.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"stowaway \(in .*00001.*not listed\)"):
        read_tensors(folder, STEM)


def test_pickles_are_not_read(checkpoint):
    folder = checkpoint / "vae"
    (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.bin")
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model.bin and no safetensors.*never read"):
        read_tensors(folder, STEM)
    (folder / f"{STEM}.bin").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        read_tensors(folder, STEM)
