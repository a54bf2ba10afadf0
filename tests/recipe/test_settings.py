import math
from dataclasses import fields
from pathlib import Path

import pytest

from helios_cli.errors import InputError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.schema import Recipe
from helios_cli.recipe.settings import ModelDefaults, Settings, choose_model, resolve_settings
from support.recipes import MODEL

SHOT = [{"prompt": "x"}]
KEYS = {"fps": 30, "size": "192x128", "seconds": 4, "seed": 7, "negative": "n", "steps": [4, 4, 4], "guidance": 5}
RECIPE = Recipe.model_validate(KEYS | {"shot": SHOT})
BARE = Recipe.model_validate({"shot": SHOT})


def test_a_flag_goes_before_the_recipe():
    flags = RenderOptions(fps=12, size=(256, 128), frames=10, seed=0, negative="", steps=(1, 1, 1), guidance=0.0)
    settings = resolve_settings(RECIPE, flags, MODEL)
    assert (settings.fps, settings.size, settings.num_frames, settings.seed) == (12, (256, 128), 10, 0)
    assert (settings.negative, settings.steps, settings.guidance) == ("", (1, 1, 1), 0)
    assert {settings.origins[key] for key in ("fps", "size", "num_frames", "seed", "negative", "steps")} == {"flag"}


def test_the_recipe_goes_before_the_model():
    settings = resolve_settings(RECIPE, RenderOptions(), MODEL)
    assert (settings.fps, settings.size, settings.num_frames, settings.seed) == (30, (192, 128), 120, 7)
    assert (settings.negative, settings.steps, settings.guidance) == ("n", (4, 4, 4), 5)
    assert {value for key, value in settings.origins.items() if key not in ("image", "video")} == {"recipe"}


def test_the_model_goes_before_the_default():
    settings = resolve_settings(BARE, RenderOptions(), MODEL)
    assert (settings.size, settings.steps, settings.guidance) == (MODEL.size, MODEL.steps, MODEL.guidance)
    assert (settings.fps, settings.num_frames, settings.seed, settings.negative) == (24, None, 42, "")
    assert settings.origins["size"] == "model" and settings.origins["seed"] == "default"


def test_every_value_has_an_origin():
    """All but what is as always unless a flag changes it."""
    origins = resolve_settings(BARE, RenderOptions(), MODEL).origins
    assert set(origins) == {field.name for field in fields(Settings)} - {"origins", "reuse_history", "reuse_steps"}


def test_the_model_is_chosen_first(monkeypatch):
    monkeypatch.delenv("HELIOS_MODEL", raising=False)
    assert choose_model(BARE, RenderOptions()) == ("auto", "default")
    monkeypatch.setenv("HELIOS_MODEL", "base")
    assert choose_model(BARE, RenderOptions()) == ("base", "HELIOS_MODEL")
    named = Recipe.model_validate({"model": "mid", "shot": SHOT})
    assert choose_model(named, RenderOptions()) == ("mid", "recipe")
    assert choose_model(named, RenderOptions(model="tiny")) == ("tiny", "flag")


@pytest.mark.parametrize(
    ("flags", "frames"),
    [
        (RenderOptions(minutes=3), 4320),
        (RenderOptions(seconds=1.49), 36),
        (RenderOptions(frames=5), 5),
        (RenderOptions(seconds=0.01), 1),
    ],
)
def test_lengths(flags, frames):
    assert resolve_settings(BARE, flags, MODEL).num_frames == frames


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (RenderOptions(minutes=3, frames=3), "--minutes and --frames"),
        (RenderOptions(image=Path("a.png"), video=Path("b.mp4")), "not both"),
        (RenderOptions(size=(832, 480)), "multiples of 64"),
        (RenderOptions(steps=(50,)), "3 stages"),
        (RenderOptions(fps=math.nan), "--fps"),
        (RenderOptions(fps=0), "--fps"),
        (RenderOptions(seconds=math.inf), "--seconds"),
        (RenderOptions(seconds=-1), "--seconds"),
        (RenderOptions(minutes=10**6), "--minutes"),
        (RenderOptions(frames=0), "--frames"),
        (RenderOptions(seed=-1), "--seed"),
        (RenderOptions(seed=2**63), "--seed"),
        (RenderOptions(guidance=-1), "--guidance"),
    ],
)
def test_flags_out_of_range(flags, says):
    with pytest.raises(InputError, match=says):
        resolve_settings(BARE, flags, MODEL)


def test_a_model_of_one_stage_takes_multiples_of_sixteen():
    base = ModelDefaults(size=(640, 384), steps=(50,), guidance=5.0)
    assert resolve_settings(BARE, RenderOptions(size=(640, 400)), base).size == (640, 400)
