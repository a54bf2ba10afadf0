"""Settings of adversarial hierarchical distillation: staged distribution matching and a discriminator."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from helios_cli.train.config import Config, Count, Ema, Optimizer, Positive, Table
from helios_cli.train.sheet import Samples
from helios_cli.train.tables import Clips, Corruption, History, RelativeHistory, Weight


class Student(Table):
    """`steps`: the numbers of steps a stage that it is to be sampled with; one is drawn each time."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2)


class Matching(Table):
    """Distribution matching.

    Attributes:
        real: checkpoint or run of kind base, the frozen score of real clips; the fake score begins with its weights.
        guidance: weight of classifier-free guidance of the real score; 1 is none.
        shift: how far score times are bent towards noise.
        low, high: bounds of the noise share at which scores are compared.
        beta: (a, b) of the distribution of score times at the first step; it ends as uniform.
        anneal: steps until then.
        critic_turns: updates of the critic for one of the student.
        weight: of the loss.
    """

    real: Annotated[str, Field(min_length=1)]
    guidance: Annotated[float, Field(ge=1)] = 4.0
    shift: Positive = 1.919
    low: Annotated[float, Field(gt=0, lt=1)] = 0.02
    high: Annotated[float, Field(gt=0, lt=1)] = 0.98
    beta: tuple[Positive, Positive] = (4.0, 1.5)
    anneal: Count = 500
    critic_turns: Annotated[int, Field(ge=1)] = 5
    weight: Weight = 1.0


class Gan(Table):
    """Adversarial training on real clips.

    Attributes:
        start: step of the run at which it begins.
        blocks: of the critic that have a head, counted from 0; the last is the final head.
        channels: width of the heads.
        student, critic: weights of the loss for each.
        r1, r2: weights of the smoothness of logits at real and at the student's samples.
        perturbation: deviation of the noise that smoothness is measured with.
        crop: show heads windows of half the height and width, where the picture is large enough.
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


class Memory(Table):
    """What is held at once. None of these changes a gradient by more than rounding.

    Attributes:
        cache_gradients: the discriminator's gradient for the student's sample is taken inside the forward pass.
        separate_backward: each of the critic's losses has a backward pass of its own.
        checkpoint_blocks: activations within a block are computed again in the backward pass.
        adapters: rank of adapters; above 0, student and scores are one backbone (the real score's) with an adapter
            each, and only adapters are trained. The student begins as near to `start` as the rank allows.
        rest_on_host: networks that are not at work are in host memory.
    """

    cache_gradients: bool = True
    separate_backward: bool = True
    checkpoint_blocks: bool = False
    adapters: Count = 0
    rest_on_host: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Memory:
        if self.rest_on_host and not self.cache_gradients:
            raise ValueError(
                "`rest_on_host` needs `cache_gradients`: the student's backward pass would meet the critic"
            )
        if self.rest_on_host and self.adapters:
            raise ValueError("with `adapters` there is one network and none rests: leave out `rest_on_host`")
        return self


METHOD = Corruption(clean=0.2, noise=0.4, blur=0.0, exposure=0.4, none=0.0)
"""What the method does to history in this phase."""


class Settings(Config):
    """`start` is the student, trained by the phase `ode`."""

    start: str
    data: Clips
    history: RelativeHistory = History(empty_caption=0.0, short=0.5)
    corruption: Corruption = METHOD
    student: Student = Student()
    matching: Matching
    gan: Gan = Gan()
    memory: Memory = Memory()
    samples: Samples = Samples(steps=(1, 1, 1))
    optimizer: Optimizer = Optimizer(lr=2e-6, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0)
    critic: Optimizer = Optimizer(lr=4e-7, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0)
    ema: Ema = Ema(decay=0.99, start=750)
