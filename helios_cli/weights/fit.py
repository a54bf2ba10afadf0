"""Checks configs against each other and the headers of the weights, before anything of their size is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from helios_cli.architecture import DiTConfig, SchedulerConfig, UMT5Config, VAEConfig
from helios_cli.errors import CheckpointError

if TYPE_CHECKING:
    from helios_cli.weights.checkpoint import Component
    from helios_cli.weights.files import TensorInfo

Config = TypeVar("Config", DiTConfig, UMT5Config, VAEConfig, SchedulerConfig)

Sizes = Iterator[tuple[str, tuple[int, ...] | None]]
"""Names of tensors and their shapes; None for one that must not exist."""

ALIASES = {
    # Wan's name for the output modulation.
    "transformer": {"scale_shift_table": "norm_out.scale_shift_table"},
    # One embedding, which some writers store under both names.
    "text_encoder": {"encoder.embed_tokens.weight": "shared.weight"},
}
"""Stored name -> our name, which is read where both are stored."""

ARCHITECTURE_HINT = "helios runs the published Helios architecture, in any size"
FIT_HINT = "the config and the weights have to come from the same save_pretrained"


class Architecture(NamedTuple):
    """The typed configs of a checkpoint, checked against each other and the headers of the weights."""

    dit: DiTConfig
    text: UMT5Config
    vae: VAEConfig
    scheduler: SchedulerConfig


def read_architecture(components: Mapping[str, Component], scheduler: tuple[str, dict]) -> Architecture:
    """Read the configs of the components and of the scheduler, given as (file name, config).

    Raises CheckpointError for values that are not supported, beyond limits, or different from the headers.
    """
    file, written = scheduler
    parts = {name: (str(part.folder / "config.json"), part.config) for name, part in components.items()}
    read = Architecture(
        dit=_typed(DiTConfig, *parts["transformer"]),
        text=_typed(UMT5Config, *parts["text_encoder"]),
        vae=_typed(VAEConfig, *parts["vae"]),
        scheduler=_typed(SchedulerConfig, file, written),
    )
    _require_one_model(read, parts["transformer"][0])
    for name, sizes in (
        ("transformer", _dit_sizes(read.dit)),
        ("text_encoder", _text_sizes(read.text)),
        ("vae", _vae_sizes(read.vae)),
    ):
        _require_fit(components[name], sizes)
    return read


def _typed(kind: type[Config], file: str, written: dict) -> Config:
    try:
        return kind.from_json(written)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}", hint=ARCHITECTURE_HINT) from error


def _require_one_model(read: Architecture, file: str) -> None:
    for key, other, value, expected in (
        ("text_dim", "d_model of the text encoder", read.dit.text_dim, read.text.d_model),
        ("in_channels", "z_dim of the vae", read.dit.in_channels, read.vae.z_dim),
    ):
        if value != expected:
            raise CheckpointError(f"{file}: `{key}` is {value}, but {other} is {expected}", hint=FIT_HINT)


def _dit_sizes(dit: DiTConfig) -> Sizes:
    """Yield a tensor for each number of the config, in the first block and in the last."""
    yield "patch_embedding.weight", (dit.width, dit.in_channels, *dit.patch_size)
    yield "condition_embedder.text_embedder.linear_1.weight", (dit.width, dit.text_dim)
    yield "condition_embedder.time_embedder.linear_1.weight", (dit.width, dit.freq_dim)
    for block in {0, dit.num_layers - 1}:
        yield f"blocks.{block}.ffn.net.0.proj.weight", (dit.ffn_dim, dit.width)
    yield f"blocks.{dit.num_layers}.ffn.net.0.proj.weight", None


def _text_sizes(text: UMT5Config) -> Sizes:
    yield "shared.weight", (text.vocab_size, text.d_model)
    for layer in {0, text.num_layers - 1}:
        attention = f"encoder.block.{layer}.layer.0.SelfAttention"
        yield f"{attention}.q.weight", (text.num_heads * text.d_kv, text.d_model)
        yield f"{attention}.relative_attention_bias.weight", (text.relative_attention_num_buckets, text.num_heads)
        yield f"encoder.block.{layer}.layer.1.DenseReluDense.wi_0.weight", (text.d_ff, text.d_model)
    yield f"encoder.block.{text.num_layers}.layer.1.DenseReluDense.wi_0.weight", None


def _vae_sizes(vae: VAEConfig) -> Sizes:
    finest, coarsest = (vae.base_dim * vae.dim_mult[level] for level in (0, -1))
    yield "encoder.conv_in.weight", (vae.base_dim, vae.in_channels, 3, 3, 3)
    yield "decoder.conv_in.weight", (coarsest, vae.z_dim, 3, 3, 3)
    yield "decoder.conv_out.weight", (vae.out_channels, finest, 3, 3, 3)
    for level, mult in enumerate(reversed(vae.dim_mult)):
        width = vae.base_dim * mult
        yield f"decoder.up_blocks.{level}.resnets.{vae.num_res_blocks}.conv2.weight", (width, width, 3, 3, 3)
        yield f"decoder.up_blocks.{level}.resnets.{vae.num_res_blocks + 1}.conv2.weight", None


def _shape_of(info: TensorInfo) -> tuple[int, ...]:
    """Return the shape of a parameter that is stored: two weights of nf4 are in a byte (`weights.low_bit`)."""
    return (*info.shape[:-1], 2 * info.shape[-1]) if info.dtype == "U8" and info.shape else info.shape


def _require_fit(component: Component, sizes: Sizes) -> None:
    stored = {ALIASES.get(component.name, {}).get(name, name): info for name, info in component.tensors.items()}
    for name, expected in sizes:
        shape = _shape_of(stored[name]) if name in stored else None
        if shape != expected:
            is_, be = ("missing" if value is None else str(list(value)) for value in (shape, expected))
            raise CheckpointError(
                f"the tensors of {component.folder} do not fit its config.json: {name} is {is_}, but should be {be}",
                hint=FIT_HINT,
            )
