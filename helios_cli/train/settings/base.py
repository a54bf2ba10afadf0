"""Settings of the phase that teaches the flow of whole chunks, from noise to clean latents in one stage."""

from __future__ import annotations

from helios_cli.train.config import Positive, Table
from helios_cli.train.tables import FlowConfig


class Loss(Table):
    """How sigma is drawn: the logistic function of a normal number of that mean and deviation."""

    mean: float = 0.0
    deviation: Positive = 1.0


class Settings(FlowConfig):
    loss: Loss = Loss()
