"""The committed recipes one after the other, each from what the one before left, to a checkpoint that renders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helios_cli.bench.screening import Showing, films
from helios_cli.engine.models import Models
from helios_cli.train.config import load
from helios_cli.train.data import toy
from helios_cli.train.loop import perform
from helios_cli.units import FRAMES_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint

RECIPES = Path(__file__).resolve().parents[2] / "recipes/train"
CPU = torch.device("cpu")

TRAINED = ["steps=1", "batch=2", "dtype=float32", "log.probe_every=0", "log.samples_every=0"]
FLOW = [*TRAINED, "data.held_back=2"]
SMALL = {
    "text": TRAINED,
    "vae": [*TRAINED, "data.pieces=[[5,32,32]]", "latents.clips=2"],
    "latents": ["size=[64,64]", "world.clips=4", "dtype=float32"],
    "mid": FLOW,
    "pairs": ["pairs=2", "batch=2", "dtype=float32", "teacher.steps=4", "data.held_back=2"],
    "ode": TRAINED,
    "base": FLOW,
    "distill": [*FLOW, "matching.critic_turns=1", "gan.start=0", "gan.channels=16"],
    "package": [],
}
"""Overrides by phase: as little work as there can be."""

SHIPPING = ("text", "vae", "latents", "mid", "mid-motion", "mid-shape", "mid-last", "mid-borders")
SHIPPING += ("pairs", "ode", "vae-decoder")


@pytest.mark.train
def test_the_recipes_end_in_a_model_that_renders(tmp_path, monkeypatch):
    """All that the model card names. Nothing is learnt in a step; contact sheets and probes have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(toy, "CLIPS_PER_SHARD", 4)
    for name in (*SHIPPING, "package", "base", "distilled"):
        path = RECIPES / f"tiny-{name}.toml"
        list(perform(load(path, SMALL[load(path).phase]), CPU))
    assert Checkpoint.open("runs/distilled/checkpoint").kind == "distilled"
    packaged = Checkpoint.open("runs/tiny")
    assert packaged.kind == "distilled" and packaged.trained and {"a", "background"} <= set(packaged.words)
    models = Models(packaged, CPU, torch.float32, name="made")
    (film,) = films(models, ["a red ball"], FRAMES_PER_CHUNK, Showing())
    assert film.shape == (FRAMES_PER_CHUNK, 64, 128, 3)
