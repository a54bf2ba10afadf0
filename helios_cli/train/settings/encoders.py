"""The settings of the phases text, vae and latents: the networks around the transformer, and the clips that they encode
ahead for the phases that train on them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from helios_cli.train.settings.run import (
    AtLeastOne,
    Count,
    Ema,
    Fraction,
    Optimizer,
    PhaseSettings,
    Positive,
    Table,
    Text,
    TrainingSettings,
    Weight,
)
from helios_cli.train.world.trajectory import HEIGHT, WIDTH
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_LATENT, PIXELS_PER_CELL


class TextData(Table):
    """The source of captions: the training part of the toy world."""

    world: Literal["plain", "rich"] = "plain"


class TextSettings(TrainingSettings):
    batch: int = 32
    dtype: Literal["bfloat16", "float32"] = "float32"
    optimizer: Optimizer = Optimizer(lr=3e-3, warmup=20, decay=0.5)
    data: TextData = TextData()


POOLS = (2, 4)
"""The factors by which the two coarser stages of the pyramid are smaller."""


Pixels = Annotated[int, Field(gt=0, multiple_of=PIXELS_PER_CELL * max(POOLS))]


class VAEData(Table):
    """The clips that the VAE is trained on.

    Attributes:
        world: variety of the toy world's scenes.
        pieces: (frames, height, width) of what is cut out of a clip around its object; each step uses one of these.
            Frames are 4k + 1; sides are multiples of 32, 64 and 128 at most. Small pieces are faster, but only long
            and large ones show what rendering meets.
        longest_start: a piece begins at a frame from 0 to this.
    """

    world: Literal["plain", "rich"] = "plain"
    pieces: Annotated[tuple[tuple[int, Pixels, Pixels], ...], Field(min_length=1)] = (
        (17, 64, 64),
        (9, 64, 128),
        (33, 64, 64),
    )
    longest_start: Count = 120

    @field_validator("pieces")
    @classmethod
    def _whole_latents(cls, pieces: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        for frames, height, width in pieces:
            if height > HEIGHT or width > WIDTH:
                raise ValueError(f"a piece of {height}x{width} pixels is larger than the world, {HEIGHT}x{WIDTH}")
            if frames < 1 or frames % FRAMES_PER_LATENT != 1:
                raise ValueError(f"a piece of {frames} frames makes no whole latents; write one of 1, 5, 9, 13 ...")
        return pieces


class VAELoss(Table):
    """Weights of the losses, each a mean over pixels or latents.

    Attributes:
        squares: weight of the squared difference; the absolute difference has weight 1.
        edges: weight of the absolute difference of the pictures' slopes.
        detail: extra weight of a pixel near an edge of the picture, relative to one in a flat area.
        kl: weight of the divergence from the normal distribution, which keeps the latents' deviation at a few units.
        noise: deviation of the noise that is added to latents before they are decoded.
        pooled: weight of decoding latents averaged 2x2 or 4x4, against equally averaged frames: it makes the coarse
            stages of the pyramid pictures too.
    """

    squares: Weight = 2.0
    edges: Weight = 1.0
    detail: Weight = 2.0
    kl: Weight = 1e-3
    noise: Weight = 0.2
    pooled: Weight = 0.25


class VAELatents(Table):
    """The statistics that normalise a checkpoint's latents.

    Attributes:
        clips: number of whole clips to measure them on at every save.
        deviation: deviation of latents in the model's space. Above 1, the noise of a given sigma hides less of them;
            most of a plain picture's variance is its background's.
    """

    clips: Annotated[int, Field(ge=2)] = 200
    deviation: Positive = 2.0


class VAESettings(TrainingSettings):
    """The settings of the phase that trains the VAE.

    Attributes:
        fresh: begin with a new VAE although `start` has one.
        part: "decoder" freezes the encoder and the latents' statistics, so that cached latents stay valid.
    """

    fresh: bool = False
    part: Literal["all", "decoder"] = "all"
    batch: int = 8
    optimizer: Optimizer = Optimizer(lr=1e-3, muon=("encoder.*.weight", "decoder.*.weight"), muon_lr=5e-3)
    ema: Ema = Ema(decay=0.99)
    data: VAEData = VAEData()
    loss: VAELoss = VAELoss()
    latents: VAELatents = VAELatents()


Side = Annotated[int, Field(ge=16, multiple_of=16)]


class WorldClips(Table):
    """Clips of the toy world, each determined by its number and the run's seed.

    Attributes:
        clips: number of clips, rounded up to a multiple of 64. Raising it adds to an existing cache.
        long: share of clips with `chunks` chunks; the others have one.
        changes: share of the borders between chunks at which something changes, and the caption with it.
        rich: share of clips with rich scenes; the others are plain.
        split: "train" leaves out the combinations of colour, shape and motion that are kept for tests.
    """

    clips: AtLeastOne = 8500
    long: Fraction = 0.3
    chunks: Annotated[int, Field(ge=2)] = 3
    changes: Fraction = 0.0
    rich: Fraction = 0.0
    split: Literal["train", "held_out"] = "train"


class FolderClips(Table):
    """A folder of clips (.mp4 .mkv .webm .gif, or folders of PNG frames), each with a caption in a .txt next to it.

    Attributes:
        path: the folder, which is searched recursively.
        fps: frame rate that clips are converted to, and that films will have.
    """

    path: Text
    fps: Annotated[float, Field(ge=1, le=1000)] = float(DEFAULT_FPS)


class LatentsSettings(PhaseSettings):
    """`out` is the cache; `start` is the checkpoint whose VAE and text encoder are used. Either `world` or `clips` is
    the source."""

    start: str
    size: tuple[Side, Side] = (128, 64)
    world: WorldClips | None = None
    clips: FolderClips | None = None

    @model_validator(mode="after")
    def _one_source(self) -> LatentsSettings:
        if (self.world is None) == (self.clips is None):
            raise ValueError("write one of [world] (clips of the toy world) and [clips] (those of a folder)")
        return self
