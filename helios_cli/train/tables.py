"""Tables of the config files of the phases that train the transformer on clips. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from helios_cli.train.config import Config, Count, Ema, Fraction, Optimizer, Table
from helios_cli.train.sheet import Samples

Weight = Annotated[float, Field(ge=0)]
Range = tuple[Weight, Weight]


class Clips(Table):
    """The clips to train on.

    Attributes:
        clips: folder of the cache that the phase `latents` wrote.
        first: probability that the target is a clip's first chunk; without it, every chunk is as likely. Chunks after
            the first come from clips that have them.
        held_back: clips, the first of the cache, that are kept for the probe. In a folder of clips the first are those
            whose names in the cache are: other ones where clips are added between two runs.
        text_rows: tokens that captions are padded to; the padding of all 512 counts whatever it is.
    """

    clips: Annotated[str, Field(min_length=1)]
    first: Fraction | None = None
    held_back: Count = 64
    text_rows: Annotated[int, Field(ge=1, le=512)] = 24


class History(Table):
    """What a chunk is told of what came before it: one model makes films from text, from a picture and from a clip.

    Attributes:
        text: probability that the past and the anchor are empty.
        image: probability of the newest latent and the anchor alone, if not empty.
        short: probability that the oldest 1, 10 or 19 latents are missing, if neither.
        anchor: whether there is one.
        positions: "absolute" counts a clip's frames on from chunk to chunk, which published models do not. Films of
            such a model, and of one without an anchor, are made within `train.ablation.as_taught`.
        empty_caption: probability of the empty caption, which guidance needs.
    """

    text: Fraction = 0.4
    image: Fraction = 0.0
    short: Fraction = 0.4
    anchor: bool = True
    positions: Literal["relative", "absolute"] = "relative"
    empty_caption: Fraction = 0.1


def _relative(history: History) -> History:
    if history.positions != "relative":
        raise ValueError('`positions = "absolute"` is for the phases base and mid: leave it out here')
    return history


RelativeHistory = Annotated[History, AfterValidator(_relative)]
"""Of phases that roll films out, which they do with relative positions alone."""


class Corruption(Table):
    """What is done to the past, so that the model learns not to trust it: each latent frame its own damage.

    Attributes:
        clean: probability that a whole past is left as it is; 1 turns corruption off.
        noise, blur, exposure, saturation, none: how often a frame of the others gets which, as shares of their sum.
        sigma: range of the noise share.
        ratio: range of the size that a blurred frame is brought to and back from.
        darker, brighter: ranges of the factor, each half of the time.
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
                raise ValueError(f"`{name}` is a range from low to high, not {low} to {high}")
        if self.sigma[1] > 1 or self.ratio[1] > 1 or not self.ratio[0]:
            raise ValueError("`sigma` and `ratio` are at most 1, and `ratio` is over 0")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order in which a frame's damage is numbered."""
        return (self.none, self.noise, self.blur, self.exposure, self.saturation)


class Memory(Table):
    """What is given for less memory or more speed.

    Attributes:
        checkpoint: keep no activations of a block, and compute it again for its gradient.
        compile: compile the blocks by torch.compile, which needs a C++ compiler or a GPU.
    """

    checkpoint: bool = False
    compile: bool = False


class FlowConfig(Config):
    """What the phases base and mid have in common. `fresh`: begin with a new transformer although `start` has one."""

    start: str
    fresh: bool = False
    data: Clips
    history: History = History()
    corruption: Corruption = Corruption()
    memory: Memory = Memory()
    samples: Samples = Samples(guidance=3.0)
    optimizer: Optimizer = Optimizer(lr=1e-3, muon=("blocks.*.weight",), muon_lr=2e-3, warmup=20)
    ema: Ema = Ema(decay=0.9985)
