"""Random LoRA files in every family of names, and what each adds to the weights, computed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS = (
    *(f"blocks.{block}.{name}" for block in (0, 1) for name in ("attn1.to_q", "attn2.to_out.0", "ffn.net.2")),
    *("blocks.1.ffn.net.0.proj", "condition_embedder.time_proj", "proj_out", "patch_embedding"),
)
"""Linear layers of every kind, and a convolution."""

WAN = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    **{f"to_{name}": name for name in "qkv"},
    "to_out.0": "o",
    "net.0.proj": "0",
    "net.2": "2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
"""Parts of our names of layers, and what Wan's own code calls them."""

FAMILIES = {
    "PEFT": lambda layer: (f"transformer.{layer}", ("lora_A", "lora_B")),
    "PEFT without transformer": lambda layer: (layer, ("lora_A", "lora_B")),
    "Wan": lambda layer: (f"diffusion_model.{in_wan(layer)}", ("lora_A", "lora_B")),
    "Wan, down and up": lambda layer: (f"diffusion_model.{in_wan(layer)}", ("lora_down", "lora_up")),
    "kohya": lambda layer: (f"lora_unet_{in_wan(layer).replace('.', '_')}", ("lora_down", "lora_up")),
}


def in_wan(layer: str) -> str:
    for ours, wan in WAN.items():
        layer = layer.replace(ours, wan)
    return layer


def weights_of(folder: Path) -> dict[str, Tensor]:
    """The transformer's tensors as they are stored."""
    files = sorted((folder / "transformer").glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def write(
    path: Path,
    weights: Mapping[str, Tensor],
    family: str = "PEFT",
    *,
    layers: Iterable[str] = LAYERS,
    rank: int = 4,
    alpha: float | None = None,
    biases: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Write a LoRA, and return what it adds to each tensor at weight 1, in float64.

    PEFT's alpha is in the file's metadata, as diffusers stores it; that of the others in a tensor.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    scale = 1.0 if alpha is None else alpha / rank
    for layer in layers:
        shape = weights[f"{layer}.weight"].shape
        name, (down_name, up_name) = FAMILIES[family](layer)
        down = torch.randn(rank, *shape[1:], generator=generator).mul(0.3).to(dtype)
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator).mul(0.3).to(dtype)
        tensors[f"{name}.{down_name}.weight"], tensors[f"{name}.{up_name}.weight"] = down, up
        product = up.double().flatten(1) @ down.double().flatten(1)
        added[f"{layer}.weight"] = scale * product.view(shape)
        if alpha is not None and not family.startswith("PEFT"):
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha)).to(dtype)
        if biases:
            bias = torch.randn(shape[0], generator=generator).mul(0.3).to(dtype)
            is_peft = family.startswith("PEFT")
            tensors[f"{name}.lora_B.bias" if is_peft else f"{name}.diff_b"] = bias
            added[f"{layer}.bias"] = (scale if is_peft else 1.0) * bias.double()
    metadata = {"format": "pt"}
    if alpha is not None and family.startswith("PEFT"):
        metadata["lora_adapter_metadata"] = json.dumps({"transformer.r": rank, "transformer.lora_alpha": alpha})
    save_file(tensors, path, metadata=metadata)
    return added
