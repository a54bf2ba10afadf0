"""Rolling out chunks from noise, in batches and with gradients: the student's few steps, and the teacher's many.

Both go through the stages as the engine's `Denoiser` does, which has no gradients and renders one film. A network is
passed in as a `Predict`, so the roll-outs do not depend on history, prompts or dtypes.

Shapes: B samples, C latent channels, H W the latent size of the last stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.guidance import classifier_free
from helios_cli.sampling.noise import BlockNoise, coarsest, draw
from helios_cli.sampling.schedule import SchedulerConfig, Stage
from helios_cli.sampling.solvers import DMD, make_solver
from helios_cli.train.transformer import Conditioning, RunBlock, flow, plain

Predict = Callable[[Tensor, float], Tensor]
"""Returns the flow of a [B, C, 9, h, w] sample at a timestep (0..999)."""


def predictor(dit: HeliosDiT, conditioning: Conditioning, *, run: RunBlock = plain) -> Predict:
    """Return a function that predicts the flow of all samples at one timestep, in float32."""

    def predict(x: Tensor, timestep: float) -> Tensor:
        return flow(dit, x, torch.full((len(x),), timestep, device=x.device), conditioning, run=run).float()

    return predict


def guided(cond: Predict, uncond: Predict, scale: float) -> Predict:
    """Combine two predictors by classifier-free guidance; with a scale of 1, return `cond`."""
    if scale == 1:
        return cond
    return lambda x, timestep: classifier_free(cond(x, timestep), uncond(x, timestep), scale)


@dataclass(frozen=True)
class Noise:
    """The noise of a roll-out: the start of stage 0, and the block noise of each jump after it. float32."""

    start: Tensor
    jumps: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Noise:
        return Noise(self.start.to(device), tuple(jump.to(device) for jump in self.jumps))


def draw_noise(
    shape: tuple[int, int, int, int], config: SchedulerConfig, block_noise: BlockNoise, generators: Iterator
) -> Noise:
    """Draw noise for samples of `shape` [C, 9, H, W], each from its own generator and in the sampler's order."""
    starts, jumps = [], []
    c, t, h, w = shape
    for generator in generators:
        starts.append(coarsest(draw((1, *shape), generator), config.stages))
        sizes = [(1, c, t, h >> halvings, w >> halvings) for halvings in reversed(range(config.stages - 1))]
        jumps.append([block_noise.draw(size, generator) for size in sizes])
    return Noise(torch.cat(starts), tuple(torch.cat(blocks) for blocks in zip(*jumps, strict=True)))


def enter(x: Tensor, renoise: tuple[float, float], block_noise: Tensor) -> Tensor:
    """Jump into a finer stage: return its start point, from the end point of the stage before."""
    alpha, beta = renoise
    return alpha * F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest") + beta * block_noise


def student_roll_out(predict: Predict, stages: Sequence[Stage], noise: Noise, exits: Sequence[int]) -> Tensor:
    """Return the end point of the last stage, [B, C, 9, H, W]; each stage ends with the x0 of its step `exits[stage]`.

    Steps count from 0. Only exit steps have a gradient, but it reaches back through all stages, since each stage begins
    with the result of the one before. With the last step of each stage as exit this is what the DMD sampler computes.
    """
    x = noise.start
    for k, (stage, last) in enumerate(zip(stages, exits, strict=True)):
        if stage.renoise:
            x = enter(x, stage.renoise, noise.jumps[k - 1])
        solver = DMD(stage, x)
        for i in range(last):
            with torch.no_grad():
                predicted = predict(x, stage.timesteps[i])
            x = solver.step(i, x.detach(), predicted)
        x = x - stage.sigmas[last] * predict(x, stage.timesteps[last]).float()
    return x


@dataclass(frozen=True)
class Walk:
    """One stage of a teacher's roll-out.

    Attributes:
        states: [n, B, C, 9, h, w], the samples that the student may start from; the first is the stage's start point.
        end: [B, C, 9, h, w], the stage's end point.
    """

    states: Tensor
    end: Tensor


def teacher_roll_out(
    predict: Predict, config: SchedulerConfig, stages: Sequence[Stage], noise: Noise, kept: int
) -> list[Walk]:
    """Roll the teacher out with the solver of `config`; keep `kept` states a stage, evenly spaced from the start point.

    `stages` are the student's schedule made finer: with a multiple of `kept` steps a stage, the states lie exactly at
    the sigmas of the student's `kept` steps. The teacher's weights must be frozen.
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
