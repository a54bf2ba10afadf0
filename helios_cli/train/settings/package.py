"""Settings of the phase that makes one small checkpoint of what several runs made."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from helios_cli.train.config import Job


class Settings(Job):
    """`out` is the checkpoint, `start` what it is a copy of, its tensors stored in `dtype`.

    Attributes:
        vae: run or checkpoint whose VAE is taken in place of `start`'s. Both must have the same latents.
        knows: what the model can show, in words that end the sentence "it knows ..."; empty for anything.
        steps: solver steps a stage that films take unless told otherwise; without it those of the model's kind.
    """

    start: str
    vae: str | None = None
    knows: str = ""
    steps: tuple[Annotated[int, Field(ge=1)], ...] | None = None
