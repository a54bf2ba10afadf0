"""A LoRA in training: low-rank products that are added to frozen matrices (Hu et al., arXiv:2106.09685).

The sum W + alpha / rank x B A is computed in float32 where the matrix is used and rounded after that, as it is when a
film folds the file in (`weights.reader`): training sees the weights that rendering does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from helios_cli.errors import InputError
from helios_cli.files import replacing
from helios_cli.train.settings.flow import LoraSettings
from helios_cli.weights.adapters import METADATA_KEY


class LoraLinear(nn.Linear):
    """A linear layer whose `weight` is a frozen matrix plus `scale` x `up` `down`; at first, `up` is zero."""

    def __init__(self, layer: nn.Linear, settings: LoraSettings, generator: Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = layer.in_features, layer.out_features, settings.scale
        self.frozen = nn.Parameter(layer.weight.detach(), requires_grad=False)
        self.bias = layer.bias
        down = torch.randn(settings.rank, self.in_features, generator=generator) * self.in_features**-0.5
        self.down = nn.Parameter(down.to(self.frozen))
        self.up = nn.Parameter(self.frozen.new_zeros(self.out_features, settings.rank))

    @property
    def weight(self) -> Tensor:
        return torch.addmm(self.frozen, self.up, self.down, alpha=self.scale)


def add_lora(network: nn.Module, settings: LoraSettings, seed: int) -> None:
    """Freeze a network and add a LoRA to its linear layers. InputError for a glob that names none of them."""
    network.requires_grad_(False)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    for glob in settings.target_modules:
        if not any(fnmatchcase(name, glob) for name in layers):
            few = ", ".join(list(layers)[:: max(1, len(layers) // 3)][:3])
            raise InputError(f"lora.target_modules has {glob!r}, which names no linear layer", hint=f"such are {few}")
    generator = torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        if any(fnmatchcase(name, glob) for glob in settings.target_modules):
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, LoraLinear(layer, settings, generator))


@torch.no_grad()
def merged(network: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network with its LoRA, if it has one, added to the matrices."""
    state = network.state_dict()
    for name, layer in _layers(network):
        for part in ("frozen", "down", "up"):
            del state[f"{name}.{part}"]
        state[f"{name}.weight"] = layer.weight
    return state


def save_lora(path: Path, network: nn.Module, settings: LoraSettings) -> None:
    """Write a transformer's LoRA in the names of PEFT, with the metadata that diffusers reads."""
    tensors = {}
    for name, layer in _layers(network):
        for part, matrix in (("lora_A", layer.down), ("lora_B", layer.up)):
            tensors[f"transformer.{name}.{part}.weight"] = matrix.detach().cpu().contiguous()
    config = {
        "r": settings.rank,
        "lora_alpha": settings.scale * settings.rank,
        "target_modules": sorted(name for name, _ in _layers(network)),
    }
    described = json.dumps({f"transformer.{key}": value for key, value in config.items()})
    with replacing(path) as new:
        save_file(tensors, new, metadata={METADATA_KEY: described})  # of several keys, the order would be random
        new.chmod(0o644)  # safetensors makes files that only their owner can read


def _layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, LoraLinear))
