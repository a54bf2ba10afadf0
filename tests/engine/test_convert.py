"""Copies in smaller types: what others read in them, and what is computed from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helios_cli import machine
from helios_cli.cli import main
from helios_cli.engine import convert as convert_module
from helios_cli.engine.convert import PAGE, bytes_to_write, convert
from helios_cli.errors import CheckpointError, InputError, MachineError
from helios_cli.model.dit import FP32_ISLANDS
from helios_cli.weights.checkpoint import Checkpoint, files_of
from helios_cli.weights.fp8 import SCALE_SUFFIX, is_fp8
from helios_cli.weights.report import verify
from support.renders import Case, rendered

CASE = Case("distilled", (64, 64), (1, 1, 1), chunks=2)
FLOAT8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Copies by type, each written once."""
    written = {}

    def get(folder, dtype):
        if dtype not in written:
            told = []
            out = tmp_path_factory.mktemp("copies") / dtype
            done = convert(Checkpoint.open(folder), out, dtype, told.append)
            assert sum(told) >= done.bytes == bytes_to_write(Checkpoint.open(folder), dtype)
            written[dtype] = done
        return written[dtype].path

    return get


@pytest.fixture
def folder(checkpoints):
    return checkpoints("distilled")


def tensors_of(folder, component):
    return {
        name: value for file in (folder / component).glob("*.safetensors") for name, value in load_file(file).items()
    }


@pytest.mark.oracle
def test_diffusers_loads_the_bfloat16_copy_and_finds_the_same_weights(folder, made, pipelines):
    pipeline = type(pipelines("distilled"))
    ours, theirs = (pipeline.from_pretrained(path, dtype=torch.bfloat16) for path in (made(folder, "bfloat16"), folder))
    for name in ("transformer", "text_encoder", "vae"):
        expected = getattr(theirs, name).state_dict()
        for key, value in getattr(ours, name).state_dict().items():
            assert torch.equal(value, expected[key]) and value.dtype == expected[key].dtype, key


@pytest.mark.usefixtures("large")
@pytest.mark.slow
def test_the_bfloat16_copy_renders_the_same_frames(folder, made, tmp_path):
    frames, expected = (
        rendered(CASE, path, tmp_path / str(place), torch.bfloat16)
        for place, path in enumerate((made(folder, "bfloat16"), folder))
    )
    assert np.array_equal(frames, expected)


def test_a_block_is_a_run_of_bytes_that_begins_on_a_page(folder, made):
    copy = Checkpoint.open(made(folder, "bfloat16"))
    for name, prefix in (("transformer", "blocks."), ("text_encoder", "encoder.block.")):
        files = {}
        for tensor in copy.component(name).tensors.values():
            files.setdefault(tensor.file, []).append(tensor)
        assert len(files) == 1 + copy.component(name).config["num_layers"]
        for tensors in files.values():
            blocks = {tensor.name.removeprefix(prefix).split(".")[0] for tensor in tensors if prefix in tensor.name}
            assert len(blocks) <= 1 and len({tensor.name.startswith(prefix) for tensor in tensors}) == 1
            assert min(tensor.begin for tensor in tensors) % PAGE == 0
    assert copy.component("transformer").bytes < 0.55 * Checkpoint.open(folder).component("transformer").bytes


def test_float8_is_scaled_row_by_row(folder, made):
    copy, original = tensors_of(made(folder, "float8"), "transformer"), tensors_of(folder, "transformer")
    assert {name for name in copy if is_fp8(name)} == {name for name, value in copy.items() if value.dtype == FLOAT8}
    for name, value in original.items():
        if is_fp8(name):
            scales = copy[name + SCALE_SUFFIX]
            assert scales.shape == value.shape[:1] and scales.dtype == torch.float32
            near = copy[name].float() * scales[:, None]
            # 3 bits of mantissa: half a step is a sixteenth; below 2^-6 of 448 steps are even, 2^-9 of a row's scale.
            assert ((near - value).abs() <= (value.abs() / 16).clamp(min=2**-10 * scales[:, None])).all(), name
        else:
            island = not FP32_ISLANDS.isdisjoint(name.split("."))
            assert torch.equal(copy[name], value if island else value.bfloat16()), name
    parameters = Checkpoint.open(made(folder, "float8")).component("transformer").parameters
    assert parameters == Checkpoint.open(folder).component("transformer").parameters


@pytest.mark.slow
@pytest.mark.usefixtures("large")
def test_float8_renders_what_its_products_of_values_and_scales_render(folder, made, tmp_path):
    """Against a checkpoint that holds those products, in a layout that anybody reads."""
    from shutil import copytree

    from safetensors.torch import save_file

    plain = copytree(folder, tmp_path / "plain")
    copy = tensors_of(made(folder, "float8"), "transformer")
    wide = {
        name: value.float() * copy[name + SCALE_SUFFIX][:, None] if value.dtype == FLOAT8 else value
        for name, value in copy.items()
        if not name.endswith(SCALE_SUFFIX)
    }
    save_file(wide, plain / "transformer" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    frames, expected = (
        rendered(CASE, path, tmp_path / str(place), torch.bfloat16)
        for place, path in enumerate((made(folder, "float8"), plain))
    )
    assert np.array_equal(frames, expected)


def test_verify_finds_copies_in_order(folder, made):
    for dtype in ("bfloat16", "float8"):
        checks = list(verify(made(folder, dtype), lambda count: None))
        assert not [check for check in checks if check.problem]
        assert {check.name for check in checks} >= set(files_of(made(folder, dtype)))


def test_a_copy_of_a_float8_copy_is_refused(folder, made, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be converted"):
        convert(Checkpoint.open(made(folder, "float8")), tmp_path / "again", "bfloat16", lambda count: None)


def test_a_folder_in_use_and_a_full_disk_are_refused_before_anything_is_written(folder, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        convert(Checkpoint.open(folder), tmp_path, "bfloat16", lambda count: None)
    monkeypatch.setattr(machine, "disk_free_bytes", lambda path: 1000)
    with pytest.raises(MachineError, match="only 1 kB is free"):
        convert(Checkpoint.open(folder), tmp_path / "new", "bfloat16", lambda count: None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_copy_of_the_current_folder_has_its_name(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    assert main(["models", "convert", ".", "--dtype", "int8"]) == 0
    assert Checkpoint.open(tmp_path / "models" / f"{folder.name}-int8")
    assert main(["models", "convert", str(folder), "--dtype", "int8"]) == 2  # of another model it may be
    assert "is not an empty folder" in capsys.readouterr().err


def test_what_the_disk_did_not_keep_is_noticed(folder, tmp_path, monkeypatch):
    """A bit that turns between writing and reading back."""
    write = convert_module._write_shard

    def damage(path, *rest):
        write(path, *rest)
        if "00002" in path.name:
            with path.open("r+b") as file:
                file.seek(-5, 2)
                last = file.read(1)
                file.seek(-5, 2)
                file.write(bytes([last[0] ^ 1]))

    monkeypatch.setattr(convert_module, "_write_shard", damage)
    with pytest.raises(CheckpointError, match=r"-00002-of-.*was not stored as it was written"):
        convert(Checkpoint.open(folder), tmp_path / "new", "bfloat16", lambda count: None)
    with pytest.raises(CheckpointError):
        Checkpoint.open(tmp_path / "new")  # what is not finished is no checkpoint


def test_an_index_counts_what_is_there(folder, made):
    component = made(folder, "bfloat16") / "transformer"
    index = json.loads((component / "diffusion_pytorch_model.safetensors.index.json").read_text())
    stored = tensors_of(made(folder, "bfloat16"), "transformer")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
    assert index["weight_map"].keys() == stored.keys()
