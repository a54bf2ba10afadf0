"""The solvers: from the sample at one sigma and the predicted flow to the sample at the next.

Each is made once a stage with its coefficients as plain Python numbers, so a step is a handful of multiply-adds and
never waits for the device. Samples stay float32 whatever the network computes in.

All use the flow parameterisation: x = (1 - sigma) x0 + sigma noise, flow = noise - x0, so x0 = x - sigma flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

import helios_kernels as kernels
from helios_cli.sampling.schedule import SchedulerConfig, Stage

SIGMA_MIN = 1e-8
"""Replaces 0 where a logarithm is taken."""


class Solver(Protocol):
    def step(self, index: int, x: Tensor, flow: Tensor) -> Tensor:
        """Return the sample after step `index` (0, 1, ... in order). `x` and the result are float32."""


def make_solver(config: SchedulerConfig, stage: Stage, start_point: Tensor) -> Solver:
    """Make the solver of one stage. `start_point` is the sample that the stage starts from (used by DMD alone)."""
    if config.scheduler_type == "euler":
        return Euler(stage)
    if config.scheduler_type == "dmd":
        return DMD(stage, start_point)
    return UniPC(config, stage)


class Euler:
    def __init__(self, stage: Stage) -> None:
        self.sigmas = stage.sigmas

    def step(self, index: int, x: Tensor, flow: Tensor) -> Tensor:
        return x + (self.sigmas[index + 1] - self.sigmas[index]) * flow.float()


class DMD:
    """Distilled steps: jump to x0, then back to the next sigma along the line to the stage's own start point.

    No fresh noise is drawn. After the last step the sample is x0, the end point of the stage.
    """

    def __init__(self, stage: Stage, start_point: Tensor) -> None:
        self.sigmas, self.start_point = stage.sigmas, start_point

    def step(self, index: int, x: Tensor, flow: Tensor) -> Tensor:
        return kernels.dmd_step(x, flow, self.start_point, self.sigmas[index], self.sigmas[index + 1])


def _log_snr(sigma: float) -> float:
    """Return lambda = ln(1 - sigma) - ln(sigma)."""
    return math.log(1 - sigma) - math.log(max(sigma, SIGMA_MIN))


@dataclass(frozen=True)
class _Move:
    """Coefficients of one UniPC move: x <- keep x + pull x0 + past (x0_before - x0) + now (x0_arrived - x0).

    The predictor has no `now`.
    """

    keep: float
    pull: float
    predict_past: float
    correct_past: float
    correct_now: float


class UniPC:
    """UniPC of order 1 or 2 on x0 predictions (Zhao et al. 2023, B(h) = h or expm1(h)).

    The predictor moves on by the last two x0; when the next x0 is known, the corrector redoes that move with it.
    """

    def __init__(self, config: SchedulerConfig, stage: Stage) -> None:
        self.sigmas = stage.sigmas
        self.moves = [
            self._move(config, index, self._order(config, stage.steps, index)) for index in range(stage.steps)
        ]
        self.corrects = [index > 0 and index - 1 not in config.disable_corrector for index in range(stage.steps)]
        self.x0s: list[Tensor] = []  # the last two, newest last
        self.last_x: Tensor | None = None

    @staticmethod
    def _order(config: SchedulerConfig, steps: int, index: int) -> int:
        """Return order 1 at the first step, which has no past, and at the last, where sigma becomes 0."""
        order = min(config.solver_order, steps - index) if config.lower_order_final else config.solver_order
        return min(order, index + 1)

    def _move(self, config: SchedulerConfig, index: int, order: int) -> _Move:
        """Compute the coefficients from sigma `index` to `index + 1`."""
        here, there = self.sigmas[index], self.sigmas[index + 1]
        h = _log_snr(there) - _log_snr(here)
        phi = math.expm1(-h)
        b_h = -h if config.solver_type == "bh1" else phi
        bend = -(1 - there) * b_h
        keep, pull = max(there, SIGMA_MIN) / max(here, SIGMA_MIN), -(1 - there) * phi
        if order == 1:
            return _Move(keep, pull, 0.0, 0.0, 0.5 * bend)
        ratio = (_log_snr(self.sigmas[index - 1]) - _log_snr(here)) / h
        # The corrector's weights solve [[1, 1], [ratio, 1]] [past, now] = [first, second].
        phi_2 = phi / -h - 1
        first, second = phi_2 / b_h, 2 * (phi_2 / -h - 0.5) / b_h
        past = (first - second) / (1 - ratio)
        return _Move(keep, pull, 0.5 * bend / ratio, past * bend / ratio, (first - past) * bend)

    def step(self, index: int, x: Tensor, flow: Tensor) -> Tensor:
        x0 = x - self.sigmas[index] * flow.float()
        if self.corrects[index]:
            x = self._correct(self.moves[index - 1], x0)
        self.x0s = [*self.x0s[-1:], x0]
        self.last_x = x
        move = self.moves[index]
        x = move.keep * x + move.pull * x0
        return x + move.predict_past * (self.x0s[0] - x0) if move.predict_past else x

    def _correct(self, move: _Move, x0_now: Tensor) -> Tensor:
        """Redo the last move from where it began, with the x0 that it arrived at."""
        before = self.x0s[-1]
        assert self.last_x is not None
        x = move.keep * self.last_x + move.pull * before + move.correct_now * (x0_now - before)
        return x + move.correct_past * (self.x0s[0] - before) if move.correct_past else x
