"""The configs of a checkpoint: one schema of the networks and the scheduler, for planning and for rendering.

    transformer/config.json                 DiTConfig
    text_encoder/config.json                UMT5Config
    vae/config.json                         VAEConfig
    scheduler/scheduler_config.json         SchedulerConfig

A config may be hostile, so every value is checked for its type and against limits far above those of published models.
Sizes that follow from a config are its properties. Plain data, no torch.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from itertools import pairwise
from math import ceil, prod
from typing import Any, NamedTuple, Self

from helios_cli.units import (
    FRAMES_PER_LATENT,
    LATENTS_PER_CHUNK,
    LONG_TERM,
    MID_TERM,
    PIXELS_PER_CELL,
    SHORT_TERM,
    grid_of,
)

MAX_STAGES = 8
"""Levels of a pyramid; the published one has 3."""


def _within(default: Any, least: float, most: float, *, length: int | None = None) -> Any:
    """Return a field of one number or of a list, each from `least` to `most`; a list may have a fixed `length`."""
    return field(default=default, metadata={"least": least, "most": most, "length": length})


def _one_of(default: Any, *choices: Any) -> Any:
    return field(default=default, metadata={"choices": choices})


def _size(default: int, most: int = 2**16) -> Any:
    return _within(default, 1, most)


@dataclass(frozen=True)
class _Config:
    """A frozen dataclass that checks its values when it is made. Raises ValueError that names the key."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not _is_legal(value, one):
                raise ValueError(f"`{one.name}` cannot be {_shown(value)}{_expected(one)}")

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Self:
        """Read the keys of `config` that have a field. Raises ValueError for an architecture that is not supported."""
        names = {one.name for one in fields(cls)}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        return cls(**{key: value for key, value in values.items() if key in names})


def _is_legal(value: Any, one: Field) -> bool:
    if "choices" in one.metadata:
        return any(value == choice and type(value) is type(choice) for choice in one.metadata["choices"])
    if not isinstance(one.default, tuple):
        return _is_alike(value, one.default, one.metadata)
    length = one.metadata["length"]
    fits = isinstance(value, tuple) and (length is None or len(value) == length)
    like = one.default[0] if one.default else 0
    return fits and all(_is_alike(item, like, one.metadata) for item in value)


def _is_alike(value: Any, default: Any, limits: Any) -> bool:
    """Return whether `value` is a bool, an int or a number, as `default` is, and within its limits."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    kinds = int | float if isinstance(default, float) else int
    return isinstance(value, kinds) and not isinstance(value, bool) and limits["least"] <= value <= limits["most"]


def _expected(one: Field) -> str:
    limits = one.metadata
    if "choices" in limits:
        return f", only {' or '.join(map(repr, limits['choices']))}"
    if "most" not in limits:
        return ""
    count = f" {limits['length']}" if limits["length"] else ""
    numbers = f"{count} numbers" if isinstance(one.default, tuple) else ""
    return f",{numbers} {limits['least']:g} to {limits['most']:g}"


def _shown(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _require(config: dict[str, Any], fixed: dict[str, tuple]) -> None:
    """Raise ValueError for a key of another architecture; `fixed` has the accepted values by key."""
    for key, accepted in fixed.items():
        if key in config and config[key] not in accepted:
            raise ValueError(f"`{key}` is {_shown(config[key])}, but only {accepted[0]!r} is supported")


def _require_known(config: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
    if unknown:
        raise ValueError(f"unknown keys: {', '.join(key[:60] for key in unknown[:5])}")


@dataclass(frozen=True)
class ModelDefaults:
    """The settings that a checkpoint brings along: width and height in pixels, steps by stage, guidance."""

    size: tuple[int, int]
    steps: tuple[int, ...]
    guidance: float


class HistoryTokens(NamedTuple):
    """Tokens of the history by term; `short` is the anchor and the newest frame."""

    long: int
    mid: int
    short: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class DiTConfig(_Config):
    """`transformer/config.json`. Defaults are the 14B model's."""

    patch_size: tuple[int, int, int] = _one_of((1, 2, 2), (1, 2, 2))  # sizes and stages are counted in patches of 2x2
    num_attention_heads: int = _size(40, 512)
    attention_head_dim: int = _size(128, 1024)
    in_channels: int = _size(16, 1024)
    out_channels: int = _size(16, 1024)
    text_dim: int = _size(4096)
    freq_dim: int = _within(256, 2, 2**16)
    ffn_dim: int = _size(13824, 2**18)
    num_layers: int = _size(40, 512)
    cross_attn_norm: bool = True
    eps: float = _within(1e-6, 0, 1)
    rope_dim: tuple[int, int, int] = _within((44, 42, 42), 0, 1024, length=3)
    rope_theta: float = _within(10000.0, 1, 1e9)
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    is_amplify_history: bool = False
    history_scale_mode: str = _one_of("per_head", "per_head", "scalar")

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.rope_dim) != self.attention_head_dim or any(dim % 2 for dim in self.rope_dim):
            size = self.attention_head_dim
            raise ValueError(
                f"`rope_dim` {list(self.rope_dim)} are not even numbers that add up to the head size {size}"
            )
        if self.out_channels != self.in_channels:
            raise ValueError(f"`out_channels` is {self.out_channels}, but `in_channels` is {self.in_channels}")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch_cells(self) -> int:
        """Latent cells in one noisy token."""
        return prod(self.patch_size)

    @property
    def fp32_parameters(self) -> int:
        """Parameters that stay float32 in every dtype: the time embedder, the modulation tables, the affine norms."""
        time_embedder = (self.freq_dim + 1) * self.width + (self.width + 1) * self.width
        tables = (6 * self.num_layers + 2) * self.width
        norms = 2 * self.num_layers * self.width if self.cross_attn_norm else 0
        return time_embedder + tables + norms

    @property
    def block_matrices(self) -> int:
        """Parameters in the matrices of a block: two attentions and the feed-forward."""
        return 4 * self.width**2 + self.fp8_block_parameters

    @property
    def prompt_matrices(self) -> int:
        """Parameters in the matrices of a block that see prompts alone: for keys and values of cross-attention."""
        return 2 * self.width**2

    @property
    def call_matrices(self) -> int:
        """Parameters in the matrices of a block that every model call needs."""
        return self.block_matrices - self.prompt_matrices

    @property
    def fp8_block_parameters(self) -> int:
        """Parameters of a block that `--quant fp8` rounds: self-attention and the feed-forward."""
        return 4 * self.width**2 + 2 * self.width * self.ffn_dim

    def history_tokens(self, size: tuple[int, int]) -> HistoryTokens:
        """Count the history rows of a model call. They are patchified at full `size` (pixels) in every stage, mid 2
        times and long 4 times coarser than short."""
        rows, columns = grid_of(size, self.patch_size)

        def term(frames: int, coarser: int) -> int:
            return ceil(frames / self.patch_size[0] / coarser) * ceil(rows / coarser) * ceil(columns / coarser)

        return HistoryTokens(term(LONG_TERM, 4), term(MID_TERM, 2), term(1 + SHORT_TERM, 1))

    def noisy_tokens(self, size: tuple[int, int], stages: int) -> tuple[int, ...]:
        """Count the rows that a model call denoises, by stage, coarsest first."""
        grids = (grid_of(size, self.patch_size, halvings) for halvings in reversed(range(stages)))
        return tuple(LATENTS_PER_CHUNK // self.patch_size[0] * rows * columns for rows, columns in grids)

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Self:
        fixed = {
            "qk_norm": ("rms_norm_across_heads",),
            "added_kv_proj_dim": (None,),
            "has_multi_term_memory_patch": (True,),
        }
        _require(config, fixed)
        _require_known(config, {one.name for one in fields(cls)} | fixed.keys())
        if config.get("out_channels", 0) is None:
            config = {**config, "out_channels": config.get("in_channels", cls.in_channels)}
        return super().from_json(config)


@dataclass(frozen=True)
class UMT5Config(_Config):
    """`text_encoder/config.json`. Defaults are UMT5-XXL's."""

    vocab_size: int = _size(256384, 2**22)
    d_model: int = _size(4096)
    d_kv: int = _size(64, 1024)
    d_ff: int = _size(10240, 2**18)
    num_layers: int = _size(24, 512)
    num_heads: int = _size(64, 512)
    relative_attention_num_buckets: int = _within(32, 4, 2**16)
    relative_attention_max_distance: int = _within(128, 2, 2**20)
    layer_norm_epsilon: float = _within(1e-6, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise ValueError(
                f"`relative_attention_max_distance` {self.relative_attention_max_distance} is too small for "
                f"{self.relative_attention_num_buckets} `relative_attention_num_buckets`"
            )

    @property
    def float16_fp32_parameters(self) -> int:
        """Parameters that stay float32 when the encoder runs in float16: the second product of each feed-forward."""
        return self.num_layers * self.d_ff * self.d_model

    @property
    def layer_matrices(self) -> int:
        """Parameters in the matrices of a layer, without its table of distances."""
        return 4 * self.d_model * self.num_heads * self.d_kv + 3 * self.d_model * self.d_ff

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Self:
        _require(config, {"feed_forward_proj": ("gated-gelu",)})
        return super().from_json(config)


@dataclass(frozen=True)
class VAEConfig(_Config):
    """`vae/config.json`: the VAE and the statistics of its latents by channel. Defaults are the published model's."""

    base_dim: int = _size(96, 4096)
    z_dim: int = _size(16, 1024)
    dim_mult: tuple[int, ...] = _within((1, 2, 4, 4), 1, 64)
    num_res_blocks: int = _size(2, 64)
    temporal_downsample: tuple[bool, ...] = field(default=(False, True, True), metadata={"length": None})
    latents_mean: tuple[float, ...] = _within(
        (
            *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
            *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
        ),
        *(-1e6, 1e6),
    )
    latents_std: tuple[float, ...] = _within(
        (
            *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
            *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
        ),
        *(1e-6, 1e6),
    )
    in_channels: int = _one_of(3, 3)
    out_channels: int = _one_of(3, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels, over_time = len(self.dim_mult), list(self.temporal_downsample)
        if 2 ** (levels - 1) != PIXELS_PER_CELL:
            raise ValueError(f"`dim_mult` has {levels} levels; a latent cell of {PIXELS_PER_CELL} pixels needs 4")
        if len(over_time) != levels - 1:
            raise ValueError(f"`temperal_downsample` has {len(over_time)} entries for {levels} levels of dim_mult")
        if 2 ** sum(over_time) != FRAMES_PER_LATENT:
            raise ValueError(f"`temperal_downsample` is {over_time}; {FRAMES_PER_LATENT} frames a latent need two true")
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"`{name}` has {len(getattr(self, name))} entries, but `z_dim` is {self.z_dim}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels by level, finest first."""
        return tuple(self.base_dim * mult for mult in self.dim_mult)

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Self:
        fixed: dict[str, tuple] = {
            "is_residual": (False,),
            "patch_size": (None, 1),
            "attn_scales": ([], None),
            "decoder_base_dim": (None, config.get("base_dim")),
            "scale_factor_temporal": (FRAMES_PER_LATENT, None),
            "scale_factor_spatial": (PIXELS_PER_CELL, None),
        }
        _require(config, fixed)
        config = {key: value for key, value in config.items() if key not in fixed and key != "dropout"}
        if "temperal_downsample" in config:  # upstream's spelling; it ends here
            config["temporal_downsample"] = config.pop("temperal_downsample")
        known = {one.name for one in fields(cls)}
        _require_known(config, known)
        if missing := sorted(known - config.keys() - {"in_channels", "out_channels"}):
            raise ValueError(f"missing keys: {', '.join(missing)}")
        return super().from_json(config)


@dataclass(frozen=True)
class TAEHVConfig:
    """The small decoder of a VAE's latents that is published as TAEHV; its files have no config.

    Attributes:
        latent_channels: of the VAE whose latents it decodes.
        widths: channels by level, coarsest first, and those behind the last level.
        growths: how many times as many frames a level makes.
        blocks: memory blocks of a level.
    """

    latent_channels: int = 16
    widths: tuple[int, ...] = (256, 128, 64, 64)
    growths: tuple[int, ...] = (1, 2, 2)
    blocks: int = 3
    out_channels: int = 3

    @property
    def levels(self) -> tuple[tuple[int, int, int], ...]:
        """The channels of each level, those of the next one, and its growth in frames."""
        return tuple(zip(self.widths, self.widths[1:], self.growths, strict=False))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor that decodes, by its name in the file: places in a list of layers, some of
        which have no tensor."""

        def conv(name: str, inputs: int, outputs: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
            found: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs, 3, 3)}
            return found | {f"{name}.bias": (outputs,)} if bias else found

        found, place = conv("decoder.1", self.latent_channels, self.widths[0]), 3
        for width, following, growth in self.levels:
            for block in range(place, place + self.blocks):
                found |= conv(f"decoder.{block}.conv.0", 2 * width, width)
                found |= conv(f"decoder.{block}.conv.2", width, width)
                found |= conv(f"decoder.{block}.conv.4", width, width)
            place += self.blocks + 1
            found[f"decoder.{place}.conv.weight"] = (growth * width, width, 1, 1)
            found |= conv(f"decoder.{place + 1}", width, following, bias=False)
            place += 2
        return found | conv(f"decoder.{place + 1}", self.widths[-1], self.out_channels)


@dataclass(frozen=True)
class SchedulerConfig(_Config):
    """`scheduler/scheduler_config.json` of HeliosScheduler and HeliosDMDScheduler."""

    scheduler_type: str = _one_of("unipc", "euler", "unipc", "dmd")
    num_train_timesteps: int = _within(1000, 2 * MAX_STAGES, 100_000)
    shift: float = _within(1.0, 1e-3, 1e3)
    stages: int = _size(3, MAX_STAGES)
    stage_range: tuple[float, ...] = _within((0.0, 1 / 3, 2 / 3, 1.0), 0, 1)
    gamma: float = _within(1 / 3, 1e-3, 1e3)
    use_dynamic_shifting: bool = False
    time_shift_type: str = _one_of("exponential", "exponential", "linear")
    solver_order: int = _one_of(2, 1, 2)
    solver_type: str = _one_of("bh2", "bh1", "bh2")
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = _within((), 0, 1000)
    base_image_seq_len: int = _size(256, 2**24)
    max_image_seq_len: int = _size(4096, 2**24)
    base_shift: float = _within(0.5, 0, 100)
    max_shift: float = _within(1.15, 0, 100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages > 1:
            bounds = [int(bound * self.num_train_timesteps) for bound in self.stage_range]
            if len(bounds) != self.stages + 1 or any(b <= a for a, b in pairwise(bounds)):
                raise ValueError(f"`stage_range` {_shown(self.stage_range)} does not rise over {self.stages} stages")
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise ValueError("`base_image_seq_len` is not below `max_image_seq_len`")

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Self:
        fixed = {
            "prediction_type": ("flow_prediction",),
            "use_flow_sigmas": (True,),
            "predict_x0": (True,),
            "thresholding": (False,),
            "solver_p": (None,),
        }
        _require(config, fixed)
        if config.get("_class_name") == "HeliosDMDScheduler":
            config = {"time_shift_type": "linear", **config, "scheduler_type": "dmd"}
        return super().from_json(config)
