"""The tables of training config files: one class of settings for each phase. No torch is imported here.

A phase `vae` is an entry in `SETTINGS` and a module `train/phases/vae.py` with a function `build`, or `run` if it
trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from helios_cli.train.world.trajectory import HEIGHT, WIDTH
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK, FRAMES_PER_LATENT, PIXELS_PER_CELL

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Range = tuple[Weight, Weight]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Table(BaseModel):
    """A table of a config file: strict, immutable, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, written: Any) -> Any:
        """Turn lists into tuples, and fill in keys that an inner table leaves out.

        Missing keys come from the field's default, which a phase may set differently from the inner table's own.
        """
        if not isinstance(written, Mapping):
            return written
        values = {key: _tuples(value) if isinstance(value, list) else value for key, value in written.items()}
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Table) and isinstance(values.get(name), Mapping):
                values[name] = dict(field.default) | dict(values[name])
        return values


def _tuples(value: list) -> tuple:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in value)


class Optimizer(Table):
    """The updates of a player's parameters. AdamW updates those that Muon does not.

    Attributes:
        muon: globs of parameter names for Muon; only matrices and convolution kernels among them are used.
        muon_lr: Muon's learning rate, about the spectral norm of a matrix's change.
        clip: largest norm of all gradients together; 0 is no limit.
        warmup: steps in which the rates rise from 0.
        decay: share of the run, at its end, in which the rates fall to 0.
    """

    lr: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: Weight = 0.0
    muon: tuple[str, ...] = ()
    muon_lr: Positive = 2e-3
    muon_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    clip: Weight = 1.0
    warmup: Count = 0
    decay: Fraction = 0.0


class Ema(Table):
    """The running mean of the first player's parameters, which is what `checkpoint/` holds.

    Attributes:
        decay: 0 keeps the parameters themselves.
        start: the first step that counts.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    start: Count = 0


class Log(Table):
    """The steps between logs, saves, samples and probes; 0 is never.

    A run is also saved when `save_minutes` have passed since the last save, when it is stopped, and at its end.
    """

    every: AtLeastOne = 10
    save_every: AtLeastOne = 500
    save_minutes: Positive = 5.0
    samples_every: Count = 0
    probe_every: Count = 0


class Samples(Table):
    """The contents of a run's contact sheets; [log] says how often one is drawn.

    Attributes:
        prompts: empty for captions of the toy world whose combinations training never sees.
        count: the number of those captions.
        chunks: length of each film.
        pictures: frames in a row, spread evenly over the film.
        steps: solver steps of each stage.
        seed: seed of the noise and of the captions.
    """

    prompts: tuple[str, ...] = ()
    count: AtLeastOne = 8
    chunks: AtLeastOne = 2
    pictures: Annotated[int, Field(ge=2)] = 8
    steps: tuple[AtLeastOne, ...] = (4, 4, 4)
    guidance: Positive = 1.0
    seed: Count = 0

    def moments(self) -> list[int]:
        """Return the numbers of the frames to show, from a film's first to its last."""
        last = self.chunks * FRAMES_PER_CHUNK - 1
        return [round(i * last / (self.pictures - 1)) for i in range(self.pictures)]


class PhaseSettings(Table):
    """The keys at the top of every config file.

    Attributes:
        start: folder of a checkpoint or run that the phase begins with, or the name of a known model, such as tiny;
            without it, the phase begins from nothing.
        out: output folder; an unfinished run in it is resumed.
        dtype: compute type of the networks; "auto" is bfloat16 where the device multiplies it fast, else float32.
            Parameters and optimizers are always float32.
    """

    phase: str
    start: str | None = None
    out: Text
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"

    @property
    def folder(self) -> Path:
        return Path(self.out)


class TrainingSettings(PhaseSettings):
    """The settings of a phase that trains; each such phase adds its own tables.

    Attributes:
        steps, max_minutes: the run ends at whichever comes first; at least one is required.
        batch: samples of a step, over all processes.
        knows: what the finished model can show, in words that end the sentence "it knows ..."; empty for anything.
    """

    steps: AtLeastOne | None = None
    max_minutes: Positive | None = None
    batch: AtLeastOne = 16
    knows: str = ""
    optimizer: Optimizer = Optimizer()
    ema: Ema = Ema()
    log: Log = Log()

    @model_validator(mode="after")
    def _ends(self) -> TrainingSettings:
        if self.steps is None and self.max_minutes is None:
            raise ValueError("the run has no end: write `steps = 1000`, or `max_minutes = 30`, or both")
        return self


# -- text and vae: the networks around the transformer --


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


# -- latents: clips encoded ahead for the phases that train on them --

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


# -- base and mid: the transformer on real clips --


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


# -- pairs, ode and distill: a student of few steps --


class PairsTeacher(Table):
    """The sampling of the teacher.

    Attributes:
        steps: solver steps of a stage; a multiple of `kept`.
        kept: states of each stage to keep, evenly spaced from its start: the student's largest number of steps.
        guidance: weight of classifier-free guidance; 1 skips the second call.
    """

    steps: AtLeastOne = 20
    kept: AtLeastOne = 4
    guidance: Annotated[float, Field(ge=1)] = 5.0

    @model_validator(mode="after")
    def _on_the_grid(self) -> PairsTeacher:
        if self.steps % self.kept:
            more = -(-self.steps // self.kept) * self.kept
            raise ValueError(f"`steps` has to be a multiple of `kept`, {self.kept}: write `steps = {more}`")
        return self


class PairsSettings(PhaseSettings):
    """`out` is the folder of pairs, `start` the teacher.

    Attributes:
        pairs: number of pairs, rounded up to a multiple of `batch`. Raising it adds to an existing folder.
        batch: pairs that are made together.
        data, history, corruption: as in the phase that trained the teacher; captions are never left out.
    """

    start: str
    pairs: AtLeastOne = 1024
    batch: AtLeastOne = 64
    data: CachedClips
    history: RelativeHistory = HistorySettings(empty_caption=0.0)
    corruption: Corruption = Corruption()
    teacher: PairsTeacher = PairsTeacher()


class OdeData(Table):
    """`pairs`: folder that the phase `pairs` wrote."""

    pairs: Text


class OdeStudent(Table):
    """`steps`: the numbers of steps a stage that the student will be sampled with, drawn with equal probability."""

    steps: tuple[AtLeastOne, ...] = (1, 2, 4)


class OdeLoss(Table):
    """The weights of the regression.

    Attributes:
        weight: weight of half the mean squared error of a stage's end point.
        stages: weight of each stage, coarsest first.
        ratio: relative frequency of each stage.
    """

    weight: Positive = 80.0
    stages: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    ratio: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)


class OdeSettings(TrainingSettings):
    """`start` is the teacher, whose weights the student begins with."""

    start: str
    data: OdeData
    student: OdeStudent = OdeStudent()
    loss: OdeLoss = OdeLoss()
    memory: FlowMemory = FlowMemory()
    samples: Samples = Samples(steps=(1, 1, 1))
    optimizer: Optimizer = Optimizer(lr=2e-6, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0)
    ema: Ema = Ema(decay=0.99, start=250)


class DistillStudent(Table):
    """`steps`: the numbers of steps a stage that the student will be sampled with; one is drawn for each turn."""

    steps: tuple[AtLeastOne, ...] = (1, 2)


class Matching(Table):
    """Distribution matching.

    Attributes:
        real: checkpoint or run of kind base, the frozen score of real clips; the fake score begins with its weights.
        guidance: weight of classifier-free guidance of the real score; 1 is none.
        shift: how far score times are shifted towards noise.
        low, high: bounds of the noise share at which scores are compared.
        beta: (a, b) of the distribution of score times at the first step; it ends as uniform.
        anneal: number of steps until it is uniform.
        critic_turns: updates of the critic for each of the student.
        weight: weight of the loss.
    """

    real: Text
    guidance: Annotated[float, Field(ge=1)] = 4.0
    shift: Positive = 1.919
    low: Annotated[float, Field(gt=0, lt=1)] = 0.02
    high: Annotated[float, Field(gt=0, lt=1)] = 0.98
    beta: tuple[Positive, Positive] = (4.0, 1.5)
    anneal: Count = 500
    critic_turns: AtLeastOne = 5
    weight: Weight = 1.0


class Gan(Table):
    """Adversarial training on real clips.

    Attributes:
        start: step of the run at which it begins.
        blocks: blocks of the critic that have a head, counted from 0; the last is the final head.
        channels: width of the heads.
        student, critic: weights of the loss for each.
        r1, r2: weights of the smoothness of logits at real samples and at the student's.
        perturbation: deviation of the noise that smoothness is measured with.
        crop: show the heads windows of half the height and width, where the picture is large enough.
    """

    start: Count = 1000
    blocks: Annotated[tuple[Count, ...], Field(min_length=1)] = (5, 15, 25, 35, 39)
    channels: Annotated[int, Field(ge=16, multiple_of=16)] = 768
    student: Weight = 5e-2
    critic: Weight = 1e-2
    r1: Weight = 100.0
    r2: Weight = 0.0
    perturbation: Positive = 0.1
    crop: bool = True


class DistillMemory(Table):
    """Ways to hold less at a time. None of these changes a gradient by more than rounding.

    Attributes:
        cache_gradients: take the discriminator's gradient for the student's sample inside the forward pass.
        separate_backward: give each of the critic's losses a backward pass of its own.
        checkpoint_blocks: recompute activations within a block in the backward pass.
        adapters: rank of adapters; above 0, student and scores are one backbone (the real score's) with an adapter
            each, and only adapters are trained. The student begins as near to `start` as the rank allows.
        rest_on_host: keep idle networks in host memory.
    """

    cache_gradients: bool = True
    separate_backward: bool = True
    checkpoint_blocks: bool = False
    adapters: Count = 0
    rest_on_host: bool = False

    @model_validator(mode="after")
    def _possible(self) -> DistillMemory:
        if self.rest_on_host and not self.cache_gradients:
            raise ValueError(
                "`rest_on_host` needs `cache_gradients`: the student's backward pass would meet the critic"
            )
        if self.rest_on_host and self.adapters:
            raise ValueError("with `adapters` there is one network and none rests: leave out `rest_on_host`")
        return self


class DistillSettings(TrainingSettings):
    """`start` is the student, trained by the phase `ode`. The defaults of `corruption` are the method's."""

    start: str
    data: CachedClips
    history: RelativeHistory = HistorySettings(empty_caption=0.0, short=0.5)
    corruption: Corruption = Corruption(clean=0.2, noise=0.4, blur=0.0, exposure=0.4, none=0.0)
    student: DistillStudent = DistillStudent()
    matching: Matching
    gan: Gan = Gan()
    memory: DistillMemory = DistillMemory()
    samples: Samples = Samples(steps=(1, 1, 1))
    optimizer: Optimizer = Optimizer(lr=2e-6, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0)
    critic: Optimizer = Optimizer(lr=4e-7, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0)
    ema: Ema = Ema(decay=0.99, start=750)


# -- package: what ships --


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
