"""Settings of the phase that encodes clips ahead, for the phases that train on their latents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from helios_cli.train.config import Fraction, Job, Table
from helios_cli.units import DEFAULT_FPS

Side = Annotated[int, Field(ge=16, multiple_of=16)]


class World(Table):
    """Clips of the toy world, each decided by its number and the run's seed.

    Attributes:
        clips: how many, rounded up to a multiple of 64. Raising it adds to a cache that is there.
        long: share of clips with `chunks` chunks; the others have one.
        changes: share of the borders between chunks at which something changes, and the caption with it.
        rich: share of clips with rich scenes; the others are plain.
        split: "train" leaves out the combinations of colour, shape and motion that are kept for tests.
    """

    clips: Annotated[int, Field(ge=1)] = 8500
    long: Fraction = 0.3
    chunks: Annotated[int, Field(ge=2)] = 3
    changes: Fraction = 0.0
    rich: Fraction = 0.0
    split: Literal["train", "held_out"] = "train"


class Clips(Table):
    """A folder of clips (.mp4 .mkv .webm .gif, or folders of PNG frames), each with a caption in a .txt beside it.

    Attributes:
        path: the folder; those in it are looked through too.
        fps: rate that the clips are brought to; the one that films will have.
    """

    path: Annotated[str, Field(min_length=1)]
    fps: Annotated[float, Field(ge=1, le=1000)] = float(DEFAULT_FPS)


class Settings(Job):
    """`out` is the cache; `start` is the checkpoint whose VAE and text encoder encode. One of `world` and `clips` says
    which clips."""

    start: str
    size: tuple[Side, Side] = (128, 64)
    world: World | None = None
    clips: Clips | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Settings:
        if (self.world is None) == (self.clips is None):
            raise ValueError("write one of [world] (clips of the toy world) and [clips] (those of a folder)")
        return self
