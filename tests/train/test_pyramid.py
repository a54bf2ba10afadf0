"""The lines that the stages' samples move along: the method's constants, and the sampler at both ends of them."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine import chunks
from helios_cli.engine.clock import Clock
from helios_cli.engine.denoise import Denoiser, stages_of
from helios_cli.engine.history import History
from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.noise import BlockNoise
from helios_cli.sampling.schedule import SIGMA_MAX, SchedulerConfig, build_stage, stage_spans
from helios_cli.train.ablation import (
    AbsoluteDenoiser,
    AnchorlessHistory,
    absolute_positions,
    as_trained,
    without_anchor,
)
from helios_cli.train.phases import flow as pyramid
from helios_cli.train.rollout import enter
from helios_cli.train.settings.flow import HistorySettings
from helios_cli.weights.checkpoint import Preset
from support.lessons import CONFIG

MID = SchedulerConfig.from_json(SCHEDULERS["mid"])
METHOD = [(0.999, 0.666333), (0.799760, 0.333666), (0.500374, 0.0)]
"""Noise share of the start and of the end point, by stage (the table in the method's description, 2.1)."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stage", range(3))
def test_points_are_the_method_s(stage):
    """Written out with plain means of cells, for latents that are not square."""
    z, n = noise(2, 16, 9, 8, 16), noise(2, 16, 9, 8, 16, seed=1)
    start, end = pyramid.points(z, n, MID, stage)

    def down(x: torch.Tensor, times: int) -> torch.Tensor:
        for _ in range(times):
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x

    halvings = 2 - stage
    own = down(n, halvings) * 2**halvings
    share_start, share_end = METHOD[stage]
    torch.testing.assert_close(end, share_end * own + (1 - share_end) * down(z, halvings), atol=2e-5, rtol=0)
    if stage == 0:
        expected = own
    else:
        before = down(z, halvings + 1).repeat_interleave(2, -1).repeat_interleave(2, -2)
        expected = share_start * own + (1 - share_start) * before
    torch.testing.assert_close(start, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_starts_where_the_sampler_hands_over(stage):
    """Mean and covariance of a start point are those of the end before it, upsampled and renoised by the sampler.

    20,000 draws of a 4 x 4 corner: the errors of the estimated moments are below 1 / sqrt(20000) = 0.7 % of the
    variance, and the bound is 5 of them.
    """
    count, side = 20_000, 4 if stage == 2 else 2
    clean = noise(1, 1, 1, 4, 4).expand(count, 1, 1, 4, 4)
    start, _ = pyramid.points(clean, noise(count, 1, 1, 4, 4, seed=1), MID, stage)
    _, before = pyramid.points(clean, noise(count, 1, 1, 4, 4, seed=2), MID, stage - 1)
    blocks = BlockNoise(MID.gamma, (1, 2, 2))
    jump = blocks.draw((count, 1, 1, side, side), torch.Generator().manual_seed(3))
    handed = enter(before, stage_spans(MID)[stage].renoise, jump)
    bound = 5 * count**-0.5
    ours, theirs = (x.flatten(1).double() for x in (start, handed))
    assert ours.shape == theirs.shape == (count, side * side)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=bound, rtol=0)
    torch.testing.assert_close(torch.cov(ours.T), torch.cov(theirs.T), atol=1.5 * bound, rtol=0)
    # White, so that stages are really independent of how the noise came to be.
    variance = METHOD[stage][0] ** 2
    expected = variance * torch.eye(side * side, dtype=torch.float64)
    torch.testing.assert_close(torch.cov(theirs.T), expected, atol=1.5 * bound, rtol=0)


@pytest.mark.parametrize("stage", range(3))
@pytest.mark.parametrize("kind", ["mid", "distilled"])
def test_sigmas_and_timesteps_are_the_sampler_s(stage, kind):
    """On the sampler's own grid."""
    config, size = SchedulerConfig.from_json(SCHEDULERS[kind]), (128, 64)
    steps = (5, 5, 5)
    sampled = stages_of(config, steps, size, (1, 2, 2), amplify=False)[stage]
    assert pyramid.shift_tokens(config, stage, (4, 8)) == 9 * [2, 2, 8][stage]
    grid = np.linspace(SIGMA_MAX, 0, 1001)[:-1]
    places = np.linspace(grid[0], grid[-1], 5 if kind == "mid" else 6)[:5] / SIGMA_MAX
    tokens = pyramid.shift_tokens(config, stage, (4, 8))
    sigmas, told = pyramid.draw_sigmas(torch.from_numpy(places), config, stage, tokens)
    assert told.tolist() == list(sampled.timesteps)
    torch.testing.assert_close(sigmas, torch.tensor(sampled.sigmas[:-1], dtype=torch.float32), atol=1e-6, rtol=0)


def test_the_tokens_of_the_reference_size():
    """384 x 640: 540, 540 and 2160, which shift the sampler's stages 0, 1 and 2."""
    assert [pyramid.shift_tokens(MID, stage, (24, 40)) for stage in range(3)] == [540, 540, 2160]
    told = [build_stage(MID, k, 20, t).timesteps[0] for k, t in enumerate((540, 540, 2160))]
    shares = torch.ones(1)
    assert [pyramid.draw_sigmas(shares, MID, k, t)[1].item() for k, t in enumerate((540, 540, 2160))] == told


class Exact(HeliosDiT):
    """Knows the clean latents, and answers with the flow of the one line through the sample that ends with them."""

    def know(self, clean: torch.Tensor, stages) -> None:
        self.clean = clean
        self.sigma_of = [dict(zip(stage.timesteps, stage.sigmas, strict=False)) for stage in stages]
        self.noises = {0: [], 1: [], 2: []}

    def modulation(self, timestep: torch.Tensor) -> float:
        return timestep.item()

    def forward(self, x, tokens, timestep, rope, text, past=None):
        stage = {2: 0, 4: 1, 8: 2}[x.shape[-2]]
        sigma = self.sigma_of[stage][timestep]
        start, end = METHOD[stage] if stage else (1.0, METHOD[0][1])  # the sampler begins with noise alone
        own = F.avg_pool3d(self.clean, (1, 2 ** (2 - stage), 2 ** (2 - stage)))
        before = F.avg_pool3d(own, (1, 2, 2)).repeat_interleave(2, -1).repeat_interleave(2, -2) if stage else 0
        signal = sigma * (1 - start) * before + (1 - sigma) * (1 - end) * own
        n = (x - signal) / (sigma * start + (1 - sigma) * end)
        self.noises[stage].append(n)
        return start * n + (1 - start) * before - end * n - (1 - end) * own


def latents_of(chunk: Generator) -> torch.Tensor:
    """The latents of a chunk."""
    while True:
        try:
            next(chunk)
        except StopIteration as done:
            return done.value


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_the_exact_flow_drives_the_sampler_to_the_clean_latents(solver):
    """Through all three stages of the engine, and what it meets on the way is noise as it was trained on."""
    config = SchedulerConfig.from_json({**SCHEDULERS["mid"], "scheduler_type": solver})
    exact, clean = Exact(CONFIG).requires_grad_(False), noise(1, 16, 9, 8, 16)
    denoiser = Denoiser(exact, config, Preset((4, 4, 4), 1.0), (128, 64), Clock(torch.device("cpu")))
    exact.know(clean, denoiser.stages[False])
    history, generator = History.empty(16, 8, 16, torch.device("cpu")), torch.Generator().manual_seed(5)
    made = latents_of(denoiser.chunk(0, history, None, None, generator, amplify=False))
    # The rounded constants of the method's table are 5e-7 off.
    torch.testing.assert_close(made, clean, atol=1e-4, rtol=0)
    for stage, noises in exact.noises.items():
        values = noises[0].flatten()
        assert abs(values.mean()) < 5 * len(values) ** -0.5, f"stage {stage}"
        # The variance of n squares is 2.
        assert abs(values.square().mean() - 1) < 5 * (2 / len(values)) ** 0.5, f"stage {stage}"
        for later in noises[1:]:
            torch.testing.assert_close(later, noises[0], atol=2e-2, rtol=0)


def test_films_without_an_anchor():
    """The newest frame and all before it stay; afterwards the engine is what it was."""
    with without_anchor():
        history = chunks.History.empty(16, 8, 16, torch.device("cpu"))
    assert chunks.History is History
    plain = History.empty(16, 8, 16, torch.device("cpu"))
    for seed in (0, 1):
        for one in (history, plain):
            one.remember(noise(1, 16, 9, 8, 16, seed=seed))
    for found, expected in zip(history.terms(), plain.terms(), strict=True):
        assert torch.equal(found[:, :, 1 - found.shape[2] :], expected[:, :, 1 - found.shape[2] :])
    assert plain.terms()[2][:, :, 0].any() and not history.terms()[2][:, :, 0].any()


@pytest.mark.parametrize(("anchor", "positions"), [(True, "relative"), (False, "relative"), (False, "absolute")])
def test_films_as_a_model_was_taught(anchor, positions):
    with as_trained(HistorySettings(anchor=anchor, positions=positions)):
        assert chunks.History is (History if anchor else AnchorlessHistory)
        assert chunks.Denoiser is (Denoiser if positions == "relative" else AbsoluteDenoiser)
    assert (chunks.History, chunks.Denoiser) == (History, Denoiser)


def test_films_with_absolute_positions():
    """Chunk by chunk the frames count on; afterwards the engine is what it was."""
    dit = HeliosDiT(CONFIG).requires_grad_(False)
    plain = chunks.Denoiser
    with absolute_positions():
        denoiser = chunks.Denoiser(dit, MID, Preset((1, 1, 1), 1.0), (128, 64), Clock(torch.device("cpu")))
    assert chunks.Denoiser is plain
    text = dit.embed_text(torch.zeros(1, 1, CONFIG.text_dim))
    for index in (0, 7):
        seen = []
        history, generator = History.empty(16, 8, 16, torch.device("cpu")), torch.Generator().manual_seed(5)
        denoiser.answer = lambda calls, seen=seen: [seen.append(call.rope) or call.noisy_BCTHW for call in calls]
        list(denoiser.chunk(index, history, text, None, generator, amplify=False))
        for rope, grid in zip(seen, ((1, 2), (2, 4), (4, 8)), strict=True):
            assert torch.equal(rope, dit.rope((4, 8), grid, 9 * index))
