"""Sizes of the published architecture, as configs in the diffusers layout, and the tokenizer of the smaller ones.

Plain data, no torch. Values that a size does not name are those of the published 14B model.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helios_cli.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}

_WORDS = """
a an the one two and with of in on at by to from as is are it its into over under above below behind before near through
across along around between while then that this there not no very

red green blue yellow orange purple white black grey gray pink brown dark light bright pale deep
circle ball disc square box block triangle star shape dot
small large big tiny huge little

move moves moving go goes going roll rolls rolling slide slides sliding glide glides gliding drift drifts drifting
float floats floating fly flies flying fall falls falling rise rises rising climb climbs sink sinks drop drops
circles circling orbit orbits orbiting turn turns turning spin spins bounce bounces bouncing jump jumps jumping
stay stays staying stand stands rest rests still stop stops wait waits return returns
left right up down upward upwards downward downwards leftward rightward forth back side top bottom middle centre center
slowly slow quickly quick fast gently smoothly

background plain gradient scene sea sky ocean water wave waves beach sand night day evening morning dawn dusk sunset
sunrise sun moon stars cloud clouds hill hills mountain mountains field grass meadow horizon snow desert
camera pan pans panning zoom zooms zooming out closer away
becomes become fades fade grows grow shrinks shrink changes change appears disappears
"""

CHARACTERS = string.digits + string.ascii_lowercase + string.punctuation

WORDS = list(dict.fromkeys(_WORDS.split()))

PIECES = list(dict.fromkeys([*SPECIAL, *WORDS, *CHARACTERS]))

TRANSFORMER = {
    "_class_name": "HeliosTransformer3DModel",
    "added_kv_proj_dim": None,
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-06,
    "ffn_dim": 13824,
    "freq_dim": 256,
    "guidance_cross_attn": True,
    "has_multi_term_memory_patch": True,
    "history_scale_mode": "per_head",
    "in_channels": 16,
    "is_amplify_history": False,
    "num_attention_heads": 40,
    "num_layers": 40,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "qk_norm": "rms_norm_across_heads",
    "rope_dim": [44, 42, 42],
    "rope_theta": 10000.0,
    "text_dim": 4096,
    "zero_history_timestep": True,
}

VAE = {
    "_class_name": "AutoencoderKLWan",
    "attn_scales": [],
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "dropout": 0.0,
    "latents_mean": [
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ],
    "latents_std": [
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
    ],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}

TEXT_ENCODER = {
    "architectures": ["UMT5EncoderModel"],
    "model_type": "umt5",
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": SPECIAL["<pad>"],
    "eos_token_id": SPECIAL["</s>"],
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-06,
    "num_heads": 64,
    "num_layers": 24,
    "pad_token_id": SPECIAL["<pad>"],
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "vocab_size": 256384,
}

SMALL_TEXT_ENCODER = {
    **TEXT_ENCODER,
    **{"d_model": 512, "num_heads": 8, "num_layers": 4, "d_ff": 1024, "vocab_size": len(PIECES)},
}

BASE_SCHEDULER = {
    "_class_name": "HeliosScheduler",
    "disable_corrector": [],
    "gamma": 1 / 3,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "scheduler_type": "unipc",
    "shift": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "stage_range": [0, 1],
    "stages": 1,
    "thresholding": False,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
    "use_flow_sigmas": True,
}

PYRAMID = {"stages": 3, "stage_range": [0, 1 / 3, 2 / 3, 1]}

SCHEDULERS = {
    "base": BASE_SCHEDULER,
    "mid": {**BASE_SCHEDULER, **PYRAMID},
    "distilled": {
        **PYRAMID,
        "_class_name": "HeliosDMDScheduler",
        "gamma": 1 / 3,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "shift": 1.0,
        "time_shift_type": "linear",
        "use_dynamic_shifting": True,
        "use_flow_sigmas": True,
    },
}
"""`scheduler/scheduler_config.json` by kind."""


@dataclass(frozen=True)
class Spec:
    """A size of model: the configs of its components, and the (width, height) in pixels of its films.

    A `resident` one is too large to write to disk for a benchmark: each process makes its weights on the device.
    """

    transformer: dict
    vae: dict
    text_encoder: dict
    native_size: tuple[int, int]
    resident: bool = False


SPECS = {
    "tiny": Spec(
        transformer={
            **TRANSFORMER,
            **{"num_attention_heads": 4, "attention_head_dim": 32, "rope_dim": [12, 10, 10]},
            **{"num_layers": 6, "ffn_dim": 512, "text_dim": 64},
        },
        vae={**VAE, "base_dim": 8, "dim_mult": [1, 2, 4, 8], "num_res_blocks": 1},
        text_encoder={
            **SMALL_TEXT_ENCODER,
            **{"d_model": 64, "num_heads": 4, "d_kv": 16, "num_layers": 2, "d_ff": 128},
        },
        native_size=(128, 64),
    ),
    "215m": Spec(
        transformer={**TRANSFORMER, "num_attention_heads": 8, "num_layers": 12, "ffn_dim": 4096, "text_dim": 512},
        vae={**VAE, "base_dim": 32},
        text_encoder=SMALL_TEXT_ENCODER,
        native_size=(384, 256),
    ),
    "1.3b": Spec(
        transformer={**TRANSFORMER, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "text_dim": 512},
        vae=VAE,
        text_encoder=SMALL_TEXT_ENCODER,
        native_size=(640, 384),
    ),
    "14b": Spec(TRANSFORMER, VAE, TEXT_ENCODER, native_size=(640, 384), resident=True),
}
"""The sizes by the number of parameters of the transformer. All except 14b have a small text encoder."""

SIZES = ", ".join(SPECS)


def spec_of(size: str) -> Spec:
    """Return the spec of a size. InputError for another name."""
    if size not in SPECS:
        raise InputError(f"{size!r} is not a size of a synthetic model", hint=f"write one of {SIZES}")
    return SPECS[size]


def word_tokenizer() -> Tokenizer:
    """Make a tokenizer with a token for each of WORDS, which spells every other word.

    It lowers case, drops accents and appends `</s>`; only letters without an ASCII form become `<unk>`. No piece of an
    unknown word is taken for a known one: `fish` does not contain `is`.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    built = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(PIECES)}, unk_token="<unk>"))
    built.add_special_tokens(list(SPECIAL))
    built.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    piece = Regex(rf"\b(?:{'|'.join(WORDS)})\b|\S")
    built.pre_tokenizer = pre_tokenizers.Split(piece, behavior="removed", invert=True)
    built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", SPECIAL["</s>"])])
    return built
