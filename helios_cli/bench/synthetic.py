"""Random models in the published layout: as a folder that any reader of it loads, or made on a device, never stored.

Every tensor is drawn from a generator of its own, seeded by its name, so that it does not depend on other tensors.
Values are uniform, since those are the same on every processor; a GPU has a random stream of its own.

The scales keep a film of any length in range: every matrix passes on about the deviation of its input, and the norms
before the outputs bound them whatever the history holds. Latents have a deviation of 1 to 2, frames of about 0.4 around
grey.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helios_cli import machine
from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.bench.specs import SCHEDULERS, Spec, word_tokenizer
from helios_cli.engine.convert import BLOCK
from helios_cli.engine.models import Models
from helios_cli.engine.parts import Part
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.umt5 import UMT5Config, UMT5Encoder
from helios_cli.model.vae import WanVAE
from helios_cli.weights.checkpoint import OWN_FILE, PRESETS, TOKENIZER, Checkpoint, Component
from helios_cli.weights.files import TensorInfo
from helios_cli.weights.fp8 import SCALE_SUFFIX, is_scale, quantize_weight
from helios_cli.weights.layout import set_kind, shard_name, write_index, write_json, write_weights

KNOWS = "nothing: its weights are random and its pictures are noise"

FP8 = torch.float8_e4m3fn

STORED_AS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

UNIT_UNIFORM = math.sqrt(3)
"""Bound of the uniform distribution with deviation 1."""

GAINS = {
    # Flat attention would average the prompt and the history; longer queries let each head choose.
    "attn1.norm_q.weight": 2.0,
    "attn2.norm_q.weight": 4.0,
    # T5 does not divide logits by the root of the head size.
    "SelfAttention.q.weight": 0.25,
    # SiLU halves its input; the frames should have a deviation of 0.4.
    "decoder.conv_out.weight": 0.67,
}
"""Factors on the usual scale, by the end of a tensor's name."""


def write_checkpoint(
    folder: Path, spec: Spec, *, dtype: torch.dtype = torch.float32, seed: int = 0, kind: str = "distilled"
) -> Path:
    """Write a model of `spec` with random weights to `folder`, and return it. Same arguments, same bytes.

    `kind` is base, mid or distilled. One component is in memory at a time; of a resident size, one block, which has a
    file of its own.
    """
    for name, module in _modules(spec):
        if spec.resident:
            _write_blocks(folder, name, module, dtype, seed)
        else:
            write_weights(folder, name, random_state(name, module, dtype, seed=seed))
    _write_description(folder, spec, kind, dtype)  # last: it makes the folder a checkpoint
    return folder


def _write_blocks(folder: Path, component: str, module: nn.Module, dtype: torch.dtype, seed: int) -> None:
    """Write the files of a component and their index, beginning with the parameters outside of blocks."""
    blocks: dict[int, list[str]] = {}
    for name, _ in module.named_parameters():
        place = BLOCK[component].match(name) if component in BLOCK else None
        blocks.setdefault(int(place[1]) if place else -1, []).append(name)
    weight_map: dict[str, str] = {}
    size = 0
    for number, index in enumerate(sorted(blocks), start=1):
        shard = shard_name(component, number, len(blocks))
        state = random_state(component, module, dtype, seed=seed, names=frozenset(blocks[index]))
        write_weights(folder, component, state, shard=shard)
        weight_map |= dict.fromkeys(state, shard)
        size += sum(value.nbytes for value in state.values())
    write_index(folder, component, weight_map, size)


def random_state(
    component: str,
    module: nn.Module,
    dtype: torch.dtype,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    fp32_islands: frozenset[str] = frozenset(),
    names: frozenset[str] | None = None,
) -> dict[str, Tensor]:
    """Draw values for all parameters of `module`, or those of these `names`.

    The module may be on the meta device and of any implementation. Values are drawn in float32 and then rounded to
    `dtype`, except for parameters with one of `fp32_islands` in their name; weights that `module` has in fp8 are then
    rounded further, and get their scales.
    """
    state = {}
    for name, parameter in module.named_parameters():
        if is_scale(name) or (names is not None and name not in names):
            continue
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{component}/{name}".encode()))
        mean, deviation = _moments(name, parameter.shape)
        # Exact up to the subtraction, so that rounding happens at the same places everywhere.
        values = torch.rand(parameter.shape, generator=generator, device=device).mul_(2).sub_(1)
        values.mul_(deviation * UNIT_UNIFORM).add_(mean)
        state[name] = values.to(dtype if fp32_islands.isdisjoint(name.split(".")) else torch.float32)
        if parameter.dtype == FP8:
            state[name], state[name + SCALE_SUFFIX] = quantize_weight(state[name])
    return state


def _moments(name: str, shape: torch.Size) -> tuple[float, float]:
    """Return the mean and the deviation of a parameter."""
    gain = next((gain for end, gain in GAINS.items() if name.endswith(end)), 1.0)
    if name.endswith("bias"):
        return 0.0, 0.1
    if name.endswith("scale_shift_table"):
        return 0.0, shape[-1] ** -0.5
    if name == "shared.weight":
        return 0.0, 1.0
    if name.endswith("relative_attention_bias.weight"):
        return 0.0, 0.5
    if math.prod(shape) == shape[0]:  # the weight of a norm
        return gain, 0.1
    inputs = math.prod(shape[1:])
    return 0.0, gain * inputs**-0.5


class RandomModels(Models):
    """Models of the distilled kind without a checkpoint on disk: each part is filled on its device.

    On a CPU the values are those that `write_checkpoint` writes with the same seed, in `dtype` except where they stay
    in float32.
    """

    def __init__(
        self, spec: Spec, device: torch.device, dtype: torch.dtype, *, name: str, seed: int = 0, **options: Any
    ) -> None:
        self._description = machine.temporary_folder()  # JSON and the tokenizer, some kilobytes
        self._seed = seed
        checkpoint = describe(Path(self._description.name), spec, dtype)
        super().__init__(checkpoint, device, dtype, name=name, **options)

    def _load(self, part: Part) -> nn.Module:
        module, islands = part.on_meta(), part.fp32_islands
        state = random_state(part.name, module, part.dtype, seed=self._seed, device=self.device, fp32_islands=islands)
        module.load_state_dict(state, assign=True)
        return module.eval().requires_grad_(False)


def describe(folder: Path, spec: Spec, dtype: torch.dtype) -> Checkpoint:
    """Write the JSON files and the tokenizer of a distilled checkpoint to `folder`, and return it without weights."""
    kind = "distilled"
    _write_description(folder, spec, kind, dtype)
    components = {
        name: Component(name, folder / name, getattr(spec, name), _tensors(module, folder / name, dtype))
        for name, module in _modules(spec)
    }
    return Checkpoint(
        path=folder,
        kind=kind,
        preset=PRESETS[kind],
        native_size=spec.native_size,
        trained=False,
        knows=KNOWS,
        words=(),
        things=(),
        scheduler=SCHEDULERS[kind],
        components=components,
    )


def _tensors(module: nn.Module, folder: Path, dtype: torch.dtype) -> dict[str, TensorInfo]:
    code = STORED_AS[dtype]
    return {
        name: TensorInfo(name, folder, code, tuple(value.shape), begin=0, end=value.numel() * dtype.itemsize)
        for name, value in module.named_parameters()
    }


def _write_description(folder: Path, spec: Spec, kind: str, dtype: torch.dtype) -> None:
    """Write everything except the weights."""
    set_kind(folder, kind, SCHEDULERS[kind])
    write_json(folder / OWN_FILE, {"native_size": list(spec.native_size), "trained": False, "knows": KNOWS})
    write_json(folder / "transformer/config.json", spec.transformer)
    write_json(folder / "vae/config.json", spec.vae)
    write_json(folder / "text_encoder/config.json", {**spec.text_encoder, "dtype": str(dtype).removeprefix("torch.")})
    write_json(
        folder / "tokenizer/tokenizer_config.json",
        {
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
        },
    )
    word_tokenizer().save(str(folder / TOKENIZER))


def _modules(spec: Spec) -> Iterator[tuple[str, nn.Module]]:
    """Yield the components on the meta device."""
    builders = {
        "transformer": lambda: HeliosDiT(DiTConfig.from_json(spec.transformer)),
        "text_encoder": lambda: UMT5Encoder(UMT5Config.from_json(spec.text_encoder)),
        "vae": lambda: WanVAE(VAEConfig.from_json(spec.vae)),
    }
    for name, build in builders.items():
        with torch.device("meta"):
            module = build()
        yield name, module
