"""The settings of the phases base and mid: the transformer on real clips, given a history that may be damaged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from helios_cli.train.settings.run import (
    AtLeastOne,
    Count,
    Ema,
    Fraction,
    Optimizer,
    Positive,
    Samples,
    Table,
    Text,
    TrainingSettings,
    Weight,
)

Range = tuple[Weight, Weight]


class CachedClips(Table):
    """The clips to train on.

    Attributes:
        clips: folder of the cache that the phase `latents` wrote.
        first: probability that the target is a clip's first chunk; without it, every chunk is equally likely. Later
            chunks come from clips that have them.
        held_back: number of clips, the first of the cache, that are kept for the probe. In a folder of clips these
            are the first by file name in the cache, so they can change when clips are added between two runs.
        text_rows: tokens that captions are padded to; padding up to 512 has the same effect at any value.
    """

    clips: Text
    first: Fraction | None = None
    held_back: Count = 64
    text_rows: Annotated[int, Field(ge=1, le=512)] = 24


class HistorySettings(Table):
    """The history that a chunk is given. The mixture lets one model continue text, a picture or a clip.

    Attributes:
        text: probability that the past and the anchor are empty.
        image: probability of the newest latent and the anchor alone, if not empty.
        short: probability that the oldest 1, 10 or 19 latents are missing, if neither.
        anchor: whether there is an anchor.
        positions: "absolute" counts a clip's frames on from chunk to chunk, unlike published models. Films of such a
            model, and of one without an anchor, are rendered within `train.ablation.as_trained`.
        empty_caption: probability of the empty caption, which guidance needs.
    """

    text: Fraction = 0.4
    image: Fraction = 0.0
    short: Fraction = 0.4
    anchor: bool = True
    positions: Literal["relative", "absolute"] = "relative"
    empty_caption: Fraction = 0.1


def _relative(history: HistorySettings) -> HistorySettings:
    if history.positions != "relative":
        raise ValueError('`positions = "absolute"` is for the phases base and mid: leave it out here')
    return history


RelativeHistory = Annotated[HistorySettings, AfterValidator(_relative)]
"""The history of phases that roll films out, which they do with relative positions only."""


class Corruption(Table):
    """The damage done to the past, frame by frame, so that the model learns not to trust it.

    Attributes:
        clean: probability that a whole past is left unchanged; 1 turns corruption off.
        noise, blur, exposure, saturation, none: relative frequency of each kind of damage in the other cases.
        sigma: range of the noise share.
        ratio: range of the size that a blurred frame is scaled to and back from.
        darker, brighter: ranges of the factor, each used half of the time.
    """

    clean: Fraction = 0.1
    noise: Weight = 0.8
    blur: Weight = 0.1
    exposure: Weight = 0.0
    saturation: Weight = 0.0
    none: Weight = 0.0
    sigma: Range = (0.0, 1 / 3)
    ratio: Range = (0.9, 1.0)
    darker: Range = (0.3, 0.999)
    brighter: Range = (1.001, 1.7)

    @model_validator(mode="after")
    def _possible(self) -> Corruption:
        if not sum(self.shares):
            raise ValueError(
                "noise, blur, exposure, saturation and none are all 0; write `clean = 1` for no corruption"
            )
        for name in ("sigma", "ratio", "darker", "brighter"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` must be a range from low to high, not {low} to {high}")
        if self.sigma[1] > 1 or self.ratio[1] > 1 or not self.ratio[0]:
            raise ValueError("`sigma` and `ratio` must be at most 1, and `ratio` above 0")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order in which kinds of damage are numbered."""
        return (self.none, self.noise, self.blur, self.exposure, self.saturation)


class FlowMemory(Table):
    """Trade-offs between memory and speed.

    Attributes:
        checkpoint: keep no activations of a block; recompute it for its gradient.
        compile: compile the blocks with torch.compile, which needs a C++ compiler or a GPU.
    """

    checkpoint: bool = False
    compile: bool = False


class LoraSettings(Table):
    """A LoRA that is trained in place of the transformer, which stays as `start` has it.

    Each matrix W of the layers becomes W + alpha / rank x B A. Files at other weights than 1: `helios render --lora
    FILE:0.8`. AdamW updates A (`*.down`) and B (`*.up`) unless `optimizer.muon` names them.

    Attributes:
        rank: rows of A and columns of B.
        alpha: the rank if it is left out, for a factor of 1.
        target_modules: globs of the linear layers that have one.
    """

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    alpha: Positive | None = None
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)] = ("blocks.*",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


class FlowSettings(TrainingSettings):
    """The settings shared by base and mid.

    Attributes:
        fresh: begin with a new transformer although `start` has one.
        lora: train a LoRA of `start`'s transformer; the run leaves `lora.safetensors` in place of a checkpoint.
    """

    start: str
    fresh: bool = False
    lora: LoraSettings | None = None
    data: CachedClips
    history: HistorySettings = HistorySettings()
    corruption: Corruption = Corruption()
    memory: FlowMemory = FlowMemory()
    samples: Samples = Samples(guidance=3.0)
    optimizer: Optimizer = Optimizer(lr=1e-3, muon=("blocks.*.weight",), muon_lr=2e-3, warmup=20)
    ema: Ema = Ema(decay=0.9985)

    @model_validator(mode="after")
    def _has_a_base(self) -> FlowSettings:
        if self.fresh and self.lora:
            raise ValueError("a LoRA needs the transformer of `start`: leave out `fresh`")
        return self


class BaseLoss(Table):
    """The distribution of sigma: the logistic function of a normal number with this mean and deviation."""

    mean: float = 0.0
    deviation: Positive = 1.0


class BaseSettings(FlowSettings):
    loss: BaseLoss = BaseLoss()


class MidLoss(Table):
    """The division of training between the three stages, coarsest first.

    Attributes:
        ratio: relative frequency of steps at the stage.
        weight: weight of the stage's loss.
        every: use every n-th sample of the batch; fine stages cost more.
        first: probability that a sample is at the first of the sampler's sigmas, where the film is decided; the others
            are spread as the sampler's.
    """

    ratio: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    weight: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    every: tuple[AtLeastOne, AtLeastOne, AtLeastOne] = (1, 1, 1)
    first: Fraction = 0.0

    @model_validator(mode="after")
    def _possible(self) -> MidLoss:
        if not sum(self.ratio):
            raise ValueError("`ratio` is 0 for every stage")
        return self


class MidSettings(FlowSettings):
    loss: MidLoss = MidLoss()
