"""Files of preview decoders: what is accepted, and errors that name the tensor."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pytest
import torch

from helios_cli.architecture import TAEHVConfig, VAEConfig
from helios_cli.errors import CheckpointError
from helios_cli.weights.preview import PreviewFile
from support import previews


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return previews.write(tmp_path_factory.mktemp("preview") / "taew2_1.safetensors")


def test_a_file_is_known_by_its_content(published):
    file = PreviewFile.open(published)
    assert file.name == "taew2_1.safetensors"
    assert file.digest == hashlib.sha256(published.read_bytes()).hexdigest()
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == TAEHVConfig().shapes()
    assert file.parameters == 9_844_611


def test_a_file_is_hashed_again_only_when_it_has_changed(tmp_path, monkeypatch):
    path, hashed, file_digest = previews.write(tmp_path / "taew2_1.safetensors"), [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *of: hashed.append(of) or file_digest(*of))
    first = PreviewFile.open(path)
    assert PreviewFile.open(path) == first and len(hashed) == 1
    previews.write(path, seed=1)  # of the same size
    assert PreviewFile.open(path).digest == hashlib.sha256(path.read_bytes()).hexdigest() != first.digest


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decoder.8.weight": None}, "1 missing: decoder.8.weight"),
        ({"decoder.23.weight": torch.zeros(1)}, "1 surplus: decoder.23.weight"),
        # The decoder for Wan 2.2 reads 48 channels; an early one makes more frames than it needs.
        (
            {"decoder.1.weight": torch.zeros(256, 48, 3, 3)},
            "decoder.1.weight ([256, 48, 3, 3], expected [256, 16, 3, 3])",
        ),
        ({"decoder.7.conv.weight": torch.zeros(512, 256, 1, 1)}, "decoder.7.conv.weight ([512, 256, 1, 1]"),
        ({"decoder.22.bias": torch.zeros(3, dtype=torch.int32)}, "1 of a type that is not read: decoder.22.bias"),
    ],
    ids=["missing", "surplus", "Wan 2.2", "frames", "type"],
)
def test_an_error_names_the_tensor(changed, message, tmp_path):
    path = previews.write(tmp_path / "other.safetensors", **changed)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        PreviewFile.open(path)
    assert "taew2_1.safetensors" in error.value.hint


def test_files_that_are_none(tmp_path, distilled):
    weights = next((distilled / "vae").glob("*.safetensors"))
    with pytest.raises(CheckpointError, match=r"64 missing: decoder\.1\.weight"):
        PreviewFile.open(weights)
    short = tmp_path / "short.safetensors"
    short.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"truncated|not a safetensors") as error:
        PreviewFile.open(short)
    assert "taew2_1.safetensors" in error.value.hint


def test_latents_of_another_vae(published):
    file, wan = PreviewFile.open(published), VAEConfig()
    assert file.doubts(wan, "distilled") == []
    (doubt,) = file.doubts(replace(wan, latents_mean=(0.0,) * 16), "tiny")
    assert "latents of its own" in doubt
    with pytest.raises(CheckpointError, match="16 channels, but those of other have 4"):
        file.doubts(VAEConfig(z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4), "other")
