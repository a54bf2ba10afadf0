"""Base: flow matching at full resolution, `x = (1 - sigma) z + sigma n`, answered by `n - z`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from helios_cli.train import flow
from helios_cli.train.flow import FlowPhase, Question
from helios_cli.train.phase import Share
from helios_cli.train.settings.base import Settings
from helios_cli.weights.checkpoint import Checkpoint


class Base(FlowPhase):
    kind = "base"

    def stage_of(self, share: Share) -> int:
        return 0

    def ask(self, target: Tensor, noise: Tensor, stage: int, generators: Sequence[Generator]) -> Question:
        loss = self.settings.loss
        normal = torch.stack([torch.randn((), generator=g) for g in generators])
        sigma = torch.sigmoid(loss.mean + loss.deviation * normal)
        share = sigma.view(-1, 1, 1, 1, 1)
        timestep = sigma * self.scheduler.num_train_timesteps
        return Question((1 - share) * target + share * noise, timestep, noise - target)


def build(settings: Settings, start: Checkpoint, device: torch.device) -> Base:
    return flow.build(Base, settings, start, device)
