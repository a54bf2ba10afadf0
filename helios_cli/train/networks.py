"""Transformers as the `Predict` that roll-outs take."""

from __future__ import annotations

import torch
from torch import Tensor

from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.guidance import classifier_free
from helios_cli.train.forward import Given, Run, flow, plain
from helios_cli.train.rollout import Predict


def predictor(dit: HeliosDiT, told: Given, *, run: Run = plain) -> Predict:
    """The flow of all samples at one timestep, float32."""

    def predict(x: Tensor, timestep: float) -> Tensor:
        return flow(dit, x, torch.full((len(x),), timestep, device=x.device), told, run=run).float()

    return predict


def guided(cond: Predict, uncond: Predict, scale: float) -> Predict:
    """Classifier-free guidance of two predictors; a scale of 1 is `cond` alone."""
    if scale == 1:
        return cond

    def predict(x: Tensor, timestep: float) -> Tensor:
        return classifier_free(cond(x, timestep), uncond(x, timestep), scale)

    return predict
