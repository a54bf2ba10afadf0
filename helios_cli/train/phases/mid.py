"""Mid: pyramid flow matching. Each step is one stage's, and asks for the flow from its start point to its end point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from helios_cli.train import flow, pyramid
from helios_cli.train.flow import FlowPhase, Question
from helios_cli.train.phase import Share
from helios_cli.train.settings.mid import Settings
from helios_cli.weights.checkpoint import Checkpoint


class Mid(FlowPhase):
    kind = "mid"

    def stage_of(self, share: Share) -> int:
        return int(torch.multinomial(torch.tensor(self.settings.loss.ratio), 1, generator=share.shared))

    def every(self, stage: int) -> int:
        return self.settings.loss.every[stage]

    def weight(self, stage: int) -> float:
        return self.settings.loss.weight[stage]

    def ask(self, target: Tensor, noise: Tensor, stage: int, generators: Sequence[Generator]) -> Question:
        start, end = pyramid.points(target, noise, self.scheduler, stage)
        first, place = torch.stack([torch.rand(2, generator=g) for g in generators]).unbind(1)
        place = torch.where(first < self.settings.loss.first, 1.0, place)
        tokens = pyramid.shift_tokens(self.scheduler, stage, self._grid(target))
        sigma, timestep = pyramid.draw_sigmas(place, self.scheduler, stage, tokens)
        share = sigma.view(-1, 1, 1, 1, 1)
        return Question(share * start + (1 - share) * end, timestep, start - end)

    def _grid(self, target: Tensor) -> tuple[int, int]:
        _, p_h, p_w = self.dit.config.patch_size
        return target.shape[-2] // p_h, target.shape[-1] // p_w


def build(settings: Settings, start: Checkpoint, device: torch.device) -> Mid:
    return flow.build(Mid, settings, start, device)
