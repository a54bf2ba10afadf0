"""Settings of the phase that teaches the flow of each stage of the pyramid."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from helios_cli.train.config import Fraction, Table
from helios_cli.train.tables import FlowConfig, Weight

Every = Annotated[int, Field(ge=1)]


class Loss(Table):
    """What the three stages, coarsest first, get of training.

    Attributes:
        ratio: how often a step is a stage's, relative to the others.
        weight: of the stage's loss.
        every: every how many-th sample of the batch a stage takes; fine stages cost more.
        first: probability that a sample is at the first of the sampler's sigmas, where the film is decided; the others
            are spread as the sampler's.
    """

    ratio: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    weight: tuple[Weight, Weight, Weight] = (1.0, 1.0, 1.0)
    every: tuple[Every, Every, Every] = (1, 1, 1)
    first: Fraction = 0.0

    @model_validator(mode="after")
    def _possible(self) -> Loss:
        if not sum(self.ratio):
            raise ValueError("`ratio` is 0 for every stage")
        return self


class Settings(FlowConfig):
    loss: Loss = Loss()
