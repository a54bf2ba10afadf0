"""Denoises one chunk: from noise to nine clean latent frames, through stages, steps and guidance."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

import helios_kernels as kernels
from helios_cli.engine.clock import Clock
from helios_cli.engine.events import StepDone
from helios_cli.engine.gpu import to_device
from helios_cli.engine.history import History
from helios_cli.model.block import Past
from helios_cli.model.dit import Call, HeliosDiT, Modulation, TextContext
from helios_cli.recipe.plan import has_calls
from helios_cli.sampling.guidance import classifier_free, zero_star
from helios_cli.sampling.noise import BlockNoise, coarsest, draw
from helios_cli.sampling.schedule import SchedulerConfig, Stage, build_stage
from helios_cli.sampling.solvers import make_solver
from helios_cli.units import LATENTS_PER_CHUNK, PIXELS_PER_CELL, grid_of
from helios_cli.weights.checkpoint import Preset


def stages_of(
    scheduler: SchedulerConfig,
    steps: tuple[int, ...],
    size: tuple[int, int],
    patch_size: tuple[int, int, int],
    *,
    amplify: bool,
) -> list[Stage]:
    """The steps of a chunk, stage by stage; `amplify` as in `build_stage`.

    A stage's schedule is shifted by the number of tokens of the stage before it, from whose sample it starts. The
    reference does the same: it reads the size before it upsamples.
    """
    stages = []
    for k, count in enumerate(steps):
        rows, columns = grid_of(size, patch_size, scheduler.stages - 1 - max(k - 1, 0))
        stages.append(build_stage(scheduler, k, count, LATENTS_PER_CHUNK * rows * columns, amplify=amplify))
    return stages


Answer = Callable[[Sequence[Call]], list[Tensor]]
"""Makes model calls that do not depend on each other and returns their flows, in order."""


class Flows:
    """The last two flows of a stage that the model computed, and the line through them."""

    def __init__(self) -> None:
        self._known: list[tuple[float, Tensor]] = []

    def keep(self, sigma: float, flow: Tensor) -> Tensor:
        """Remember a flow that was computed at `sigma`, and return it."""
        self._known = [*self._known[-1:], (sigma, flow)]
        return flow

    def at(self, sigma: float) -> Tensor:
        """Return the flow that the line has at `sigma`, float32."""
        (before, older), (now, newer) = self._known
        return torch.lerp(older.float(), newer.float(), (sigma - before) / (now - before))


class Denoiser:
    """Everything that is the same for all chunks of a film, and `chunk`, which denoises one.

    `settings` is the preset with the film's own steps and guidance; `size` is (width, height) in pixels. `answer`
    makes the model calls, one after the other with `dit` by default.

    With `reuse_history`, calls of the coarsest stage keep the keys and values of their history rows, and calls of the
    other stages use these in place of such rows; if the coarsest stage makes none, the chunk's first call keeps them.
    Flows are then not the same as without.

    The first two steps of a stage and its last one make calls, and of the others one in `reuse_steps`; those between
    extrapolate the flow.
    """

    def __init__(
        self,
        dit: HeliosDiT,
        scheduler: SchedulerConfig,
        settings: Preset,
        size: tuple[int, int],
        clock: Clock,
        answer: Answer | None = None,
        *,
        reuse_history: bool = False,
        reuse_steps: int = 1,
    ) -> None:
        self.reuse_history, self.reuse_steps = reuse_history, reuse_steps
        self.dit, self.scheduler, self.settings, self.clock = dit, scheduler, settings, clock
        self.answer: Answer = answer or (lambda calls: [dit(*call) for call in calls])
        width, height = (pixels // PIXELS_PER_CELL for pixels in size)
        self.shape = (1, dit.config.in_channels, LATENTS_PER_CHUNK, height, width)
        patch = dit.config.patch_size
        self.stages = {
            amplify: stages_of(scheduler, settings.steps, size, patch, amplify=amplify) for amplify in (False, True)
        }
        grids = [grid_of(size, patch, scheduler.stages - 1 - k) for k in range(scheduler.stages)]
        self.ropes = [dit.rope(grids[-1], grid) for grid in grids]
        self.block_noise = BlockNoise(scheduler.gamma, patch)
        self.modulations: dict[float, Modulation] = {}

    def chunk(
        self,
        index: int,
        history: History,
        text: TextContext,
        negative: TextContext | None,
        generator: torch.Generator,
        *,
        amplify: bool,
        before_call: Callable[[], None] = lambda: None,
    ) -> Generator[StepDone, None, Tensor]:
        """Yield each step that is done, and return the chunk's latents, [1, C, 9, H, W] float32.

        `negative` is needed where the guidance is over 1. `amplify` doubles the steps where the solver is DMD.
        An error that `before_call` raises ends the chunk before its next model call.
        """
        with self.clock("stage 0"):
            tokens = self.dit.embed_history(*history.terms())
        prompts = (text,) if negative is None else (text, negative)
        pasts = [self.dit.empty_past() if self.reuse_history else None for _ in prompts]
        x = to_device(coarsest(draw(self.shape, generator), self.scheduler.stages), tokens.device)
        for k, stage in enumerate(self.stages[amplify]):
            phase = f"stage {k}"
            with self.clock(phase):
                if stage.renoise:
                    x = self._enter(x, stage.renoise, generator)
                solver, flows = make_solver(self.scheduler, stage, x), Flows()
            zeros = self._zeros(k) if negative is not None else 0
            for i, timestep in enumerate(stage.timesteps):
                before_call()
                with self.clock(phase):
                    if i < zeros:
                        flow = torch.zeros_like(x)
                    elif has_calls(i - zeros, stage.steps - zeros, self.reuse_steps):
                        branches = zip(prompts, pasts, strict=True)
                        calls = [self._call(k, x, timestep, tokens, prompt, past) for prompt, past in branches]
                        flow = flows.keep(stage.sigmas[i], self._guided(self.answer(calls)))
                    else:
                        flow = flows.at(stage.sigmas[i])
                    x = solver.step(i, x, flow)
                yield StepDone(chunk=index, stage=k, step=i, steps_in_stage=stage.steps)
        return x

    def _zeros(self, k: int) -> int:
        """Return how many flows zero-init makes zero at the start of stage `k`, if it is guided."""
        return self.settings.zero_steps + 1 if self.settings.zero_init and k == 0 else 0

    def _call(
        self, k: int, x: Tensor, timestep: float, tokens: Tensor, text: TextContext, past: tuple[Past, ...] | None
    ) -> Call:
        """Return a call of stage `k`."""
        call = Call(x, tokens, self._modulation(timestep), self.ropes[k], text, past)
        return call.without_history() if k > 0 and call.has_past else call

    def _guided(self, flows: list[Tensor]) -> Tensor:
        if len(flows) == 1:
            return flows[0]
        cond, uncond = flows
        combine = zero_star if self.settings.cfg_zero_star else classifier_free
        return combine(cond, uncond, self.settings.guidance)

    def _enter(self, x: Tensor, renoise: tuple[float, float], generator: torch.Generator) -> Tensor:
        """Enter a finer stage: upsample x2 (nearest), scale, and add the noise that upsampling removed."""
        alpha, beta = renoise
        batch, channels, frames, height, width = x.shape
        shape = (batch, channels, frames, 2 * height, 2 * width)
        noise = to_device(self.block_noise.draw(shape, generator), x.device)
        return kernels.renoise(x, noise, alpha, beta)

    def _modulation(self, timestep: float) -> Modulation:
        if timestep not in self.modulations:
            self.modulations[timestep] = self.dit.modulation(torch.full((1,), timestep, device=self.dit.device))
        return self.modulations[timestep]
