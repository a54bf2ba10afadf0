"""Settings of the phase that makes one small checkpoint of what several runs made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from helios_cli.train.config import Job


class Settings(Job):
    """`out` is the checkpoint, `start` what it is a copy of, its tensors stored in `dtype`.

    Attributes:
        vae: run or checkpoint whose VAE is taken in place of `start`'s. Both must have the same latents.
        knows: what the model can show, in words that end the sentence "it knows ..."; empty for anything.
        clips: cache that the model was trained on: the words of its captions are those that it knows, and films that
            are asked for in others get a line. Without it, every word that the tokenizer has.
        things: nouns among them, of which it can show one at a time; more in one prompt get that line as well.
        steps: solver steps a stage that films take unless told otherwise; without it those of the model's kind.
    """

    start: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    vae: str | None = None
    knows: str = ""
    clips: str | None = None
    things: tuple[str, ...] = ()
    steps: tuple[Annotated[int, Field(ge=1)], ...] | None = None
