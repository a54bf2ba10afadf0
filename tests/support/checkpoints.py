"""Random checkpoints of every kind, small enough to render in a test. diffusers has no part in them: it reads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS, TRANSFORMER, VAE, Spec
from helios_cli.bench.synthetic import random_state, write_checkpoint
from helios_cli.model.dit import HeliosDiT
from helios_cli.weights.checkpoint import OWN_FILE, SCHEDULER_CONFIG

DIT = {
    **{"num_attention_heads": 2, "attention_head_dim": 16, "rope_dim": [4, 6, 6], "num_layers": 2},
    **{"text_dim": 32, "freq_dim": 32, "ffn_dim": 64},
}
TEXT = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
SMALL_VAE = {**VAE, "base_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}


def write(folder: Path, kind: str, solver: str = "unipc", **dit) -> Path:
    """Write a checkpoint of `kind` to `folder`, which says no more of itself than a published one does; return it."""
    text = {**SPECS["tiny"].text_encoder, **TEXT}
    write_checkpoint(folder, Spec({**TRANSFORMER, **DIT, **dit}, SMALL_VAE, text, native_size=(64, 64)), kind=kind)
    (folder / OWN_FILE).unlink()
    if kind != "distilled":
        file = folder / SCHEDULER_CONFIG
        file.write_text(json.dumps({**json.loads(file.read_text()), "scheduler_type": solver}))
    return folder


def transformer(**config) -> HeliosDiT:
    """The transformer of these checkpoints, in float32."""
    made = HeliosDiT(DiTConfig.from_json({**TRANSFORMER, **DIT, **config}))
    made.load_state_dict(random_state("transformer", made, torch.float32, seed=0))
    return made.eval()
