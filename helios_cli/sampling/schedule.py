"""The noise schedule as plain numbers: sigmas and timesteps of every step of every stage, computed once a film.

A *stage* is a level of the pyramid, 0 the coarsest; Base has one. Inside a stage sigma runs from 1 (the stage's start
point) to 0 (its end point); the network predicts start minus end. The *timestep* that the network gets is global,
999 at the start of stage 0 and 0 at the end of the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from helios_cli.architecture import SchedulerConfig

SIGMA_MAX = 0.999
"""First sigma of a stage; 1 would make log(1 - sigma) infinite."""


@dataclass(frozen=True)
class Stage:
    """The numbers of one stage.

    Attributes:
        timesteps: what the network gets, n of them; whole numbers in pyramid models, which were trained on those.
        sigmas: local noise share at each step and 0 after the last, n + 1 of them.
        renoise: (alpha, beta) of the jump into this stage, `alpha * upsampled + beta * block_noise`; None for stage 0.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    renoise: tuple[float, float] | None = None

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def build_stage(config: SchedulerConfig, index: int, steps: int, tokens: int, *, amplify: bool = False) -> Stage:
    """Build stage `index` with `steps` steps for `tokens` noisy tokens. `amplify` doubles the steps (DMD only)."""
    if config.stages == 1:
        sigmas = shifted(config, np.linspace(SIGMA_MAX, 0.0, steps + 1)[:-1], tokens)
        return Stage(tuple((sigmas * config.num_train_timesteps).tolist()), (*sigmas.tolist(), 0.0))
    span = stage_spans(config)[index]
    table = span.table(config)
    local = np.linspace(SIGMA_MAX, 0, config.num_train_timesteps + 1)[:-1]
    points = steps
    if config.scheduler_type == "dmd":
        points = steps * (2 if amplify else 1) + 1  # the last point is the end itself, where there is nothing to do
    timesteps = np.linspace(table[0], table[-1], points)
    sigmas = np.linspace(local[0], local[-1], points)
    if config.scheduler_type == "dmd":
        timesteps, sigmas = timesteps[:-1], sigmas[:-1]
    if config.use_dynamic_shifting:
        sigmas = shifted(config, sigmas, tokens)
        timesteps = span.timesteps(config, sigmas)
    # The solver looks sigma up by the whole timestep, so two steps within one unit share a sigma (DMD).
    whole = [int(t) for t in timesteps]
    if config.scheduler_type == "dmd":
        sigmas = np.array([sigmas[np.abs(timesteps - t).argmin()] for t in whole])
    return Stage(tuple(map(float, whole)), (*sigmas.tolist(), 0.0), span.renoise)


@dataclass(frozen=True)
class StageSpan:
    """The place of a stage on the global schedule.

    Attributes:
        start: noise share of its start point, whose signal is the upsampled clean latents of the stage before.
        end: noise share of its end point, whose signal is its own clean latents.
        timestep_max, timestep_min: the timesteps of its local sigmas 1 and 0.
        renoise: as in `Stage`.
    """

    start: float
    end: float
    timestep_max: float
    timestep_min: float
    renoise: tuple[float, float] | None

    def table(self, config: SchedulerConfig) -> np.ndarray:
        """Return the timesteps of the stage's grid, the last point of which lies one short of the end."""
        return np.linspace(self.timestep_max, self.timestep_min, config.num_train_timesteps + 1)[:-1]

    def timesteps(self, config: SchedulerConfig, sigmas: np.ndarray) -> np.ndarray:
        """Return the timesteps of shifted local sigmas, before they are cut to whole numbers."""
        table = self.table(config)
        return table[-1] + sigmas * (table[0] - table[-1])


def stage_spans(config: SchedulerConfig) -> list[StageSpan]:
    """Place each stage on the global schedule, timesteps shared out by the length of each stage's flow.

    With s the signal share where stage k starts, the nearest-upsampled end of stage k - 1 plus block noise has signal
    share s' = alpha * s, alpha = 1 / (sqrt(1 + 1/gamma) (1 - s) + s), and beta = alpha (1 - s) / sqrt(gamma)
    (pyramidal flow matching, Jin et al. 2024, appendix A).
    """
    n = config.num_train_timesteps
    sigma = 1.0 - np.linspace(1, 1 / n, n + 1)
    sigma = (config.shift * sigma / (1 + (config.shift - 1) * sigma))[:0:-1]  # descending, without the final 0
    starts, ends, renoises = [], [], []
    for index in range(config.stages):
        first = max(int(config.stage_range[index] * n), 0)
        last = min(int(config.stage_range[index + 1] * n), n)
        start, end = float(sigma[first]), float(sigma[last]) if last < n else 0.0
        renoise = None
        if index > 0:
            signal = 1 - start
            alpha = 1 / (math.sqrt(1 + 1 / config.gamma) * (1 - signal) + signal)
            renoise = (alpha, alpha * (1 - signal) / math.sqrt(config.gamma))
            start = 1 - alpha * signal
        starts.append(start)
        ends.append(end)
        renoises.append(renoise)
    lengths = [start - end for start, end in zip(starts, ends, strict=True)]
    total, spans, done = sum(lengths), [], 0.0
    for index, length in enumerate(lengths):
        begin = done / total
        done += length
        stop = 0.9999999999999999 if index == config.stages - 1 else done / total
        top = min(float(sigma[int(begin * n)]) * n, n - 1)
        bottom = float(sigma[min(int(stop * n), n - 1)]) * n
        spans.append(StageSpan(starts[index], ends[index], top, bottom, renoises[index]))
    return spans


def shifted(config: SchedulerConfig, sigmas: np.ndarray, tokens: int) -> np.ndarray:
    """Move the steps towards noise, further for larger pictures. `mu` is linear in the number of tokens."""
    if not config.use_dynamic_shifting:
        return sigmas
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = tokens * slope + config.base_shift - slope * config.base_image_seq_len
    strength = math.exp(mu) if config.time_shift_type == "exponential" else mu
    with np.errstate(divide="ignore"):
        return strength / (strength + (1 / sigmas - 1))
