"""The tables of training config files: one class of settings for each phase. No torch is imported here.

A phase `vae` is an entry in `SETTINGS` and a module `train/phases/vae.py` with a function `build`, or `run` if it
trains nothing.
"""

from __future__ import annotations

from typing import Literal

from helios_cli.train.settings.encoders import LatentsSettings, TextSettings, VAESettings
from helios_cli.train.settings.flow import BaseSettings, MidSettings
from helios_cli.train.settings.run import AtLeastOne, PhaseSettings
from helios_cli.train.settings.student import DistillSettings, OdeSettings, PairsSettings


class PackageSettings(PhaseSettings):
    """`out` is the checkpoint, `start` the one it is a copy of, with tensors stored in `dtype`.

    Attributes:
        vae: run or checkpoint whose VAE replaces `start`'s. Both must have the same latents.
        knows: what the model can show, in words that end the sentence "it knows ..."; empty for anything.
        clips: cache that the model was trained on. The words of its captions are those that the model knows; a prompt
            with other words gets a notice. Without it, every word of the tokenizer is known.
        things: nouns of which the model can show one at a time; a prompt with more gets a notice as well.
        steps: default solver steps of each stage; without it, those of the model's kind.
    """

    start: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    vae: str | None = None
    knows: str = ""
    clips: str | None = None
    things: tuple[str, ...] = ()
    steps: tuple[AtLeastOne, ...] | None = None


SETTINGS: dict[str, type[PhaseSettings]] = {
    "base": BaseSettings,
    "distill": DistillSettings,
    "latents": LatentsSettings,
    "mid": MidSettings,
    "ode": OdeSettings,
    "package": PackageSettings,
    "pairs": PairsSettings,
    "text": TextSettings,
    "vae": VAESettings,
}
"""The settings of each phase, by its name in a config file."""
