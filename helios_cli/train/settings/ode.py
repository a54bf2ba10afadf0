"""Settings of the phase that teaches a student of few steps to end each stage where the teacher ended it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from helios_cli.train.config import Config, Ema, Optimizer, Positive, Table
from helios_cli.train.sheet import Samples
from helios_cli.train.tables import Memory

Weights = tuple[Positive, Positive, Positive]


class Data(Table):
    """`pairs`: folder of the phase `pairs`."""

    pairs: Annotated[str, Field(min_length=1)]


class Student(Table):
    """`steps`: the numbers of steps a stage that it is to be sampled with, drawn alike often."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4)


class Loss(Table):
    """Attributes:
    weight: of half the mean squared error of a stage's end point.
    stages: weight of each stage, coarsest first.
    ratio: how often each stage is drawn, relative to the others.
    """

    weight: Positive = 80.0
    stages: Weights = (1.0, 1.0, 1.0)
    ratio: Weights = (1.0, 1.0, 1.0)


class Settings(Config):
    """`start` is the teacher, whose weights the student begins with."""

    start: str
    data: Data
    student: Student = Student()
    loss: Loss = Loss()
    memory: Memory = Memory()
    samples: Samples = Samples(steps=(1, 1, 1))
    optimizer: Optimizer = Optimizer(lr=2e-6, betas=(0.0, 0.999), weight_decay=1e-3, clip=10.0)
    ema: Ema = Ema(decay=0.99, start=250)
