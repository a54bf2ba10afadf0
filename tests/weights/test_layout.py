"""Components written into a checkpoint folder, read back by our reader and by diffusers'."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from helios_cli.architecture import VAEConfig
from helios_cli.bench.specs import SCHEDULERS, SPECS
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.model.vae import WanVAE
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import set_kind, set_own, set_trained, write_component
from helios_cli.weights.load import load_component


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "model", SPECS["tiny"], kind="base")


def changed_vae(folder):
    component = Checkpoint.open(folder).component("vae")
    with torch.device("meta"):
        vae = WanVAE(VAEConfig.from_json(component.config))
    load_component(vae, component, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(1.5)
    return vae, component.config


@pytest.mark.oracle
@pytest.mark.slow
def test_a_component_is_replaced_and_diffusers_reads_it(folder):
    from diffusers import AutoencoderKLWan

    vae, config = changed_vae(folder)
    write_component(folder, "vae", vae, {**config, "latents_std": [2.0] * 16})
    theirs = AutoencoderKLWan.from_pretrained(folder / "vae")
    assert theirs.config.latents_std == [2.0] * 16
    found = theirs.state_dict()
    for name, value in vae.named_parameters():
        assert torch.equal(found[name], value), name
    assert sorted(file.name for file in (folder / "vae").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_shards_give_way_to_the_one_file(folder):
    vae, _ = changed_vae(folder)
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    shard = file.with_name("diffusion_pytorch_model-00001-of-00001.safetensors")
    file.rename(shard)
    index = {"weight_map": dict.fromkeys(load_file(shard), shard.name)}
    (folder / "vae/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    before = Checkpoint.open(folder).component("vae")
    write_component(folder, "vae", vae, dtype=torch.bfloat16)
    after = Checkpoint.open(folder).component("vae")
    assert (before.dtypes, after.dtypes) == (("F32",), ("BF16",))
    assert {info.file for info in after.tensors.values()} == {file} and not shard.exists()
    assert after.config == before.config


@pytest.mark.parametrize("kind", ["base", "mid", "distilled"])
def test_a_folder_becomes_another_kind(folder, kind):
    set_kind(folder, kind, SCHEDULERS[kind])
    set_own(folder, words=["ball"], things=["ball"])
    set_trained(folder, "circles")
    found = Checkpoint.open(folder)
    assert not found.words and not found.things
    assert (found.kind, found.trained, found.knows, found.native_size) == (kind, True, "circles", (128, 64))
    assert found.stages == (1 if kind == "base" else 3)
