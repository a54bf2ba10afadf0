"""Settings of the phase that makes one small checkpoint of what several runs made."""

from __future__ import annotations

from helios_cli.train.config import Job


class Settings(Job):
    """`out` is the checkpoint, `start` what it is a copy of, its tensors stored in `dtype`.

    Attributes:
        vae: run or checkpoint whose VAE is taken in place of `start`'s. Both must have the same latents.
        knows: what the model can show, in words that end the sentence "it knows ..."; empty for anything.
    """

    start: str
    vae: str | None = None
    knows: str = ""
