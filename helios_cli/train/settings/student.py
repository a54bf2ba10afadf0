"""The settings of the phases pairs, ode and distill: a student of few steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from helios_cli.train.settings.flow import CachedClips, Corruption, FlowMemory, HistorySettings, RelativeHistory
from helios_cli.train.settings.run import (
    AtLeastOne,
    Count,
    Ema,
    Optimizer,
    PhaseSettings,
    Positive,
    Samples,
    Table,
    Text,
    TrainingSettings,
    Weight,
)


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
