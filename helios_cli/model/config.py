"""What a checkpoint says of its transformer, as far as this repository computes it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class DiTConfig:
    """`transformer/config.json`. Defaults are the 14B model's."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    guidance_cross_attn: bool = True
    zero_history_timestep: bool = True
    is_amplify_history: bool = False
    history_scale_mode: str = "per_head"

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_json(cls, config: dict) -> DiTConfig:
        """Reads a checkpoint's config. Raises ValueError for a variant that is not computed here."""
        fixed = {
            "qk_norm": "rms_norm_across_heads",
            "added_kv_proj_dim": None,
            "has_multi_term_memory_patch": True,
        }
        for key, value in fixed.items():
            if config.get(key, value) != value:
                raise ValueError(f"`{key}` is {config[key]!r}, only {value!r} is supported")
        known = {field.name for field in fields(cls)}
        unknown = sorted(key for key in config if key not in known | set(fixed) and not key.startswith("_"))
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
        if values.get("out_channels", 0) is None:
            values["out_channels"] = values.get("in_channels", cls.in_channels)
        made = cls(**values)
        if sum(made.rope_dim) != made.attention_head_dim:
            raise ValueError(f"`rope_dim` {made.rope_dim} does not add up to the head size {made.attention_head_dim}")
        return made
