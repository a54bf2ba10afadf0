"""Chunks from noise, a batch at a time and with gradients: the student's few steps, and the teacher's many.

Both walk the stages as the engine's `Denoiser` does, which has no gradients and one film. A network is handed in as a
`Predict`, so that nothing here knows about history, prompts or dtypes.

Shapes: B samples, C latent channels, H W the latent size of the last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_cli.sampling.noise import BlockNoise, coarsest, draw
from helios_cli.sampling.schedule import SchedulerConfig, Stage
from helios_cli.sampling.solvers import DMD, make_solver

Predict = Callable[[Tensor, float], Tensor]
"""The flow of a [B, C, 9, h, w] sample at a timestep (0..999)."""


@dataclass(frozen=True)
class Noise:
    """What a roll-out is made of: the start of stage 0, and the block noise of each jump after it. float32."""

    start: Tensor
    jumps: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Noise:
        return Noise(self.start.to(device), tuple(jump.to(device) for jump in self.jumps))


def draw_noise(
    shape: tuple[int, int, int, int], config: SchedulerConfig, block_noise: BlockNoise, generators: Iterator
) -> Noise:
    """Noise for samples of `shape` [C, 9, H, W], each from its own generator and in the order of the sampler."""
    starts, jumps = [], []
    c, t, h, w = shape
    for generator in generators:
        starts.append(coarsest(draw((1, *shape), generator), config.stages))
        sizes = [(1, c, t, h >> halvings, w >> halvings) for halvings in reversed(range(config.stages - 1))]
        jumps.append([block_noise.draw(size, generator) for size in sizes])
    return Noise(torch.cat(starts), tuple(torch.cat(blocks) for blocks in zip(*jumps, strict=True)))


def enter(x: Tensor, renoise: tuple[float, float], block_noise: Tensor) -> Tensor:
    """The jump into a finer stage: its start point, from the end of the stage before."""
    alpha, beta = renoise
    return alpha * F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest") + beta * block_noise


def student_roll_out(predict: Predict, stages: Sequence[Stage], noise: Noise, exits: Sequence[int]) -> Tensor:
    """The end of the last stage [B, C, 9, H, W], each stage left with the x0 of its step `exits[stage]` (from 0).

    Only those steps have a gradient, but it reaches back through all stages: a later stage begins with what the one
    before has made. The last step of each stage as exit is what the DMD sampler computes.
    """
    x = noise.start
    for k, (stage, last) in enumerate(zip(stages, exits, strict=True)):
        if stage.renoise:
            x = enter(x, stage.renoise, noise.jumps[k - 1])
        solver = DMD(stage, x)
        for i in range(last):
            with torch.no_grad():
                flow = predict(x, stage.timesteps[i])
            x = solver.step(i, x.detach(), flow)
        x = x - stage.sigmas[last] * predict(x, stage.timesteps[last]).float()
    return x


@dataclass(frozen=True)
class Walk:
    """One stage of a teacher's roll-out.

    Attributes:
        states: [n, B, C, 9, h, w], the sample before the steps at which the student may be asked; the first is the
            stage's start point.
        end: [B, C, 9, h, w], the stage's end point.
    """

    states: Tensor
    end: Tensor


def teacher_roll_out(
    predict: Predict, config: SchedulerConfig, stages: Sequence[Stage], noise: Noise, kept: int
) -> list[Walk]:
    """The teacher's way with the solver of `config`, `kept` states a stage, evenly spaced from the start point on.

    `stages` are the student's schedule made finer: with a multiple of `kept` steps a stage, the states lie at the very
    sigmas of the student's `kept` steps. The teacher's weights are to be frozen.
    """
    walks, x = [], noise.start
    for k, stage in enumerate(stages):
        if stage.renoise:
            x = enter(x, stage.renoise, noise.jumps[k - 1])
        solver, states = make_solver(config, stage, x), []
        for i, timestep in enumerate(stage.timesteps):
            if i % (stage.steps // kept) == 0:
                states.append(x)
            x = solver.step(i, x, predict(x, timestep))
        walks.append(Walk(torch.stack(states), x))
    return walks
