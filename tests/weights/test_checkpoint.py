from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from helios_cli.errors import CheckpointError
from helios_cli.weights.checkpoint import Checkpoint, files_of, missing_files, needed_files
from support.fakes import TRANSFORMER_SIZES, VAE_SIZES, write_checkpoint, write_json, zeros


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        # steps, guidance, amplify_first_chunk, cfg_zero_star, zero_init, zero_steps
        ("base", ((50,), 5.0, False, False, False, 1)),
        ("mid", ((20, 20, 20), 5.0, False, True, True, 1)),
        ("distilled", ((2, 2, 2), 1.0, True, False, False, 1)),
    ],
)
def test_kind_and_preset(tmp_path, kind, preset):
    opened = Checkpoint.open(write_checkpoint(tmp_path, kind))
    assert (opened.kind, astuple(opened.preset)) == (kind, preset)
    assert opened.native_size == (640, 384)
    assert opened.trained
    assert opened.tokenizer.is_file()


def test_components(checkpoint):
    opened = Checkpoint.open(str(checkpoint))
    transformer = opened.component("transformer")
    count = 16 + sum(math.prod(size) for size in TRANSFORMER_SIZES.values())
    assert (transformer.parameters, transformer.bytes, transformer.dtypes) == (count, 4 * count, ("F32",))
    assert transformer.config["num_layers"] == 1
    assert opened.component("text_encoder").dtypes == ("F16",)


def test_own_file(checkpoint):
    own = {"native_size": [128, 64], "trained": False, "knows": "coloured shapes", "steps": [6, 6, 4]}
    own |= {"words": ["a", "ball"], "things": ["ball"]}
    write_json(checkpoint / "helios.json", own)
    opened = Checkpoint.open(checkpoint)
    assert (opened.native_size, opened.trained, opened.knows) == ((128, 64), False, "coloured shapes")
    assert (opened.words, opened.things) == (("a", "ball"), ("ball",))
    assert opened.preset.steps == (6, 6, 4)
    assert opened.preset.guidance == 1.0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"size": [1, 2]}, "unknown key 'size'"),
        ({"native_size": [128]}, "native_size cannot be"),
        ({"native_size": [128, True]}, "native_size cannot be"),
        ({"steps": []}, "steps cannot be"),
        ({"steps": [0, 1, 1]}, "steps cannot be"),
        ({"steps": [4, 4]}, "2 counts, but the model has 3 stages"),
        ({"trained": "yes"}, "trained cannot be"),
        ({"words": "a ball"}, "words cannot be"),
        ({"things": [1]}, "things cannot be"),
    ],
)
def test_own_file_is_checked(checkpoint, own, message):
    write_json(checkpoint / "helios.json", own)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(checkpoint)


def test_a_pyramid_of_two_stages_has_two_step_counts(checkpoint):
    config = {"_class_name": "HeliosDMDScheduler", "stages": 2, "stage_range": [0, 0.5, 1]}
    write_json(checkpoint / "scheduler/scheduler_config.json", config)
    assert Checkpoint.open(checkpoint).preset.steps == (2, 2)


def pipeline(name: str, **values):
    return lambda path: write_json(path / "model_index.json", {"_class_name": name, **values})


def scheduler(name: str, **values):
    return lambda path: write_json(path / "scheduler/scheduler_config.json", {"_class_name": name, **values})


@pytest.mark.parametrize(
    ("damage", "message", "hint"),
    [
        (pipeline("WanPipeline"), "names the pipeline 'WanPipeline'", "HeliosPyramidPipeline"),
        (
            pipeline("HeliosPyramidPipeline"),
            "'HeliosDMDScheduler'; a mid model needs HeliosScheduler",
            "is_distilled",
        ),
        (scheduler("HeliosDMDScheduler", stages="three"), "stages of a distilled model cannot be 'three'", None),
        (lambda path: (path / "model_index.json").write_text("{"), "not valid JSON", "models verify"),
        (lambda path: (path / "model_index.json").write_text("[]"), "JSON list", "models verify"),
        (lambda path: (path / "model_index.json").unlink(), "has no model_index.json", "save_pretrained"),
        (lambda path: shutil.rmtree(path / "vae"), "vae is missing", None),
        (lambda path: (path / "vae/config.json").unlink(), "config.json is missing", None),
        (lambda path: write_json(path / "vae/config.json", {"_class_name": "AutoencoderKL"}), "'AutoencoderKL'", None),
        (lambda path: (path / "tokenizer/tokenizer.json").unlink(), "tokenizer.json is missing", None),
        (
            lambda path: (path / "tokenizer/tokenizer.json").rename(path / "tokenizer/spiece.model"),
            "only spiece.model",
            "AutoTokenizer",
        ),
    ],
)
def test_what_is_wrong_is_named(checkpoint, damage, message, hint):
    damage(checkpoint)
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(checkpoint)
    assert message in raised.value.message
    assert hint is None or hint in raised.value.hint


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("transformer", "is one component (HeliosTransformer3DModel)"),
        ("vae/diffusion_pytorch_model.safetensors", "is a file, not a checkpoint folder"),
        ("empty", "is empty"),
        ("nowhere", "does not exist"),
    ],
)
def test_places_that_are_no_checkpoint(checkpoint, where, message):
    (checkpoint / "empty").mkdir()
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(checkpoint / where)
    assert message in raised.value.message


def test_fingerprint(checkpoint, tmp_path):
    original = Checkpoint.open(checkpoint).fingerprint()
    elsewhere = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    (elsewhere / "README.md").write_text("not part of it")
    assert Checkpoint.open(elsewhere).fingerprint() == original

    config = json.loads((elsewhere / "vae/config.json").read_text())
    write_json(elsewhere / "vae/config.json", {**config, "latents_mean": [0.0, 0.5]})
    assert Checkpoint.open(elsewhere).fingerprint() != original

    shutil.copy(checkpoint / "vae/config.json", elsewhere / "vae/config.json")
    assert Checkpoint.open(elsewhere).fingerprint() == original
    other = {"conv.weight": np.ones((4, 1), "float32"), **zeros(VAE_SIZES)}
    save_file(other, elsewhere / "vae/diffusion_pytorch_model.safetensors")
    assert Checkpoint.open(elsewhere).fingerprint() != original


def test_needed_files_of_the_published_layout():
    shards = [f"transformer/diffusion_pytorch_model-{i:05d}-of-00006.safetensors" for i in range(1, 7)]
    needed = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        *shards,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    surplus = [
        "README.md",
        "modular_model_index.json",
        "guider/guider_config.json",
        "tokenizer/spiece.model",
        "transformer/diffusion_pytorch_model.safetensors",  # the index decides
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "vae/diffusion_pytorch_model.pt",
        "transformer_init/config.json",
        *(shard.replace("transformer/", "transformer_init/") for shard in shards),
        *(shard.replace("transformer/", "transformer_ode/") for shard in shards),
    ]
    assert needed_files(reversed(needed + surplus)) == sorted(needed)


def test_files_missing_from_an_interrupted_download(checkpoint):
    assert missing_files(checkpoint) == []
    assert len(files_of(checkpoint)) == 11
    names = [name for name in files_of(checkpoint) if not name.endswith("index.json")]
    for name in names:
        parked = (checkpoint / name).rename(checkpoint / "parked")
        assert missing_files(checkpoint) == [name]
        parked.rename(checkpoint / name)


@pytest.mark.process
def test_opening_imports_no_torch(checkpoint):
    code = f"""
import sys
from helios_cli.weights import checkpoint, report, source
report.describe(checkpoint.Checkpoint.open({str(checkpoint)!r}), source.source_of({str(checkpoint)!r}))
print([name for name in ("torch", "diffusers", "transformers", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
