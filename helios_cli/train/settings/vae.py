"""Settings of the phase that trains the VAE."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from helios_cli.train.config import Config, Ema, Optimizer, Positive, Table
from helios_cli.train.world.tracks import HEIGHT, WIDTH
from helios_cli.units import FRAMES_PER_LATENT, PIXELS_PER_CELL

POOLS = (2, 4)
"""How many times smaller the two coarser stages of the pyramid are."""

Weight = Annotated[float, Field(ge=0)]
Pixels = Annotated[int, Field(gt=0, multiple_of=PIXELS_PER_CELL * max(POOLS))]


class Data(Table):
    """What the VAE is shown.

    Attributes:
        world: variety of the toy world's scenes.
        pieces: (frames, height, width) of what is cut out of a clip around its object; each step takes one of these.
            Frames are 4k + 1, sides multiples of 32, 64 and 128 at most. Small ones are quicker, but only long and
            large ones show what rendering meets.
        longest_start: pieces begin at a frame from 0 to this.
    """

    world: Literal["plain", "rich"] = "plain"
    pieces: Annotated[tuple[tuple[int, Pixels, Pixels], ...], Field(min_length=1)] = (
        (17, 64, 64),
        (9, 64, 128),
        (33, 64, 64),
    )
    longest_start: Annotated[int, Field(ge=0)] = 120

    @field_validator("pieces")
    @classmethod
    def _whole_latents(cls, pieces: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        for frames, height, width in pieces:
            if height > HEIGHT or width > WIDTH:
                raise ValueError(f"a piece of {height}x{width} pixels is larger than the world, {HEIGHT}x{WIDTH}")
            if frames < 1 or frames % FRAMES_PER_LATENT != 1:
                raise ValueError(f"a piece of {frames} frames makes no whole latents; write one of 1, 5, 9, 13 ...")
        return pieces


class Loss(Table):
    """Weights of the losses, all of them means over pixels or latents.

    Attributes:
        squares: of the squared difference, beside the absolute one's 1.
        edges: of the absolute difference of the pictures' slopes.
        detail: how much more a pixel near an edge of the picture counts than one in a flat place.
        kl: of the divergence from the normal distribution. It keeps the latents' deviation at a few units.
        noise: deviation of the noise that latents are given before they are decoded.
        pooled: of decoding latents that were averaged 2x2 or 4x4, against the frames likewise averaged: the coarse
            stages of the pyramid then are pictures too.
    """

    squares: Weight = 2.0
    edges: Weight = 1.0
    detail: Weight = 2.0
    kl: Weight = 1e-3
    noise: Weight = 0.2
    pooled: Weight = 0.25


class Latents(Table):
    """The statistics by which a checkpoint's latents are normalised.

    Attributes:
        clips: number of whole clips they are measured on at every save.
        deviation: what latents have in the model's space. Above 1 the noise of a given sigma hides less of them; most
            of a plain picture's variance is its background's.
    """

    clips: Annotated[int, Field(ge=2)] = 200
    deviation: Positive = 2.0


class Settings(Config):
    """
    Attributes:
        fresh: begin with a new VAE although `start` has one.
        part: "decoder" leaves the encoder and the latents' statistics as they are, so that latents made before stay
            valid.
    """

    fresh: bool = False
    part: Literal["all", "decoder"] = "all"
    batch: int = 8
    optimizer: Optimizer = Optimizer(lr=1e-3, muon=("encoder.*.weight", "decoder.*.weight"), muon_lr=5e-3)
    ema: Ema = Ema(decay=0.99)
    data: Data = Data()
    loss: Loss = Loss()
    latents: Latents = Latents()
