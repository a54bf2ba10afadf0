"""Settings of the phase that lets a teacher make the pairs which the phase `ode` learns from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from helios_cli.train.config import Job, Table
from helios_cli.train.tables import Clips, Corruption, History, RelativeHistory

Steps = Annotated[int, Field(ge=1)]


class Teacher(Table):
    """How the teacher is sampled.

    Attributes:
        steps: of the solver, a stage; a multiple of `kept`.
        kept: states of each stage that are kept, evenly spaced from its start: the student's largest number of steps.
        guidance: weight of classifier-free guidance; 1 leaves the second call out.
    """

    steps: Steps = 20
    kept: Steps = 4
    guidance: Annotated[float, Field(ge=1)] = 5.0

    @model_validator(mode="after")
    def _on_the_grid(self) -> Teacher:
        if self.steps % self.kept:
            more = -(-self.steps // self.kept) * self.kept
            raise ValueError(f"`steps` has to be a multiple of `kept`, {self.kept}: write `steps = {more}`")
        return self


class Settings(Job):
    """`out` is the folder of pairs, `start` the teacher.

    Attributes:
        pairs: how many, rounded up to a multiple of `batch`. Raising it adds to a folder that is there.
        batch: pairs that are made together.
        data, history, corruption: as in the phase that trained the teacher; captions are never left out.
    """

    start: str
    pairs: Annotated[int, Field(ge=1)] = 1024
    batch: Annotated[int, Field(ge=1)] = 64
    data: Clips
    history: RelativeHistory = History(empty_caption=0.0)
    corruption: Corruption = Corruption()
    teacher: Teacher = Teacher()
