"""Random draws and guidance against diffusers' own functions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from helios_cli.sampling.guidance import classifier_free, zero_star
from helios_cli.sampling.noise import BlockNoise, coarsest, draw
from support import oracle


@pytest.mark.oracle
def test_block_noise_is_the_reference_s(monkeypatch):
    from diffusers import HeliosPyramidPipeline

    monkeypatch.setattr(torch.linalg, "cholesky", oracle.exact_block_noise_factor(torch.linalg.cholesky))
    pipeline = SimpleNamespace(scheduler=SimpleNamespace(config=SimpleNamespace(gamma=1 / 3)))
    shape = (1, 16, 9, 8, 12)
    theirs = HeliosPyramidPipeline.sample_block_noise(
        pipeline, *shape, (1, 2, 2), torch.device("cpu"), torch.Generator().manual_seed(1)
    )
    ours = BlockNoise(1 / 3, (1, 2, 2)).draw(shape, torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_blocks_sum_to_nearly_nothing():
    """The noise restores what nearest upsampling took away: unit variance, and -1/3 between the cells of a block."""
    noise = BlockNoise(1 / 3, (1, 2, 2)).draw((1, 8, 9, 64, 64), torch.Generator().manual_seed(2))
    blocks = noise.unfold(3, 2, 2).unfold(4, 2, 2).flatten(5).flatten(0, 4)
    assert blocks.sum(1).abs().max() < 2e-3
    expected = torch.full((4, 4), -1 / 3).fill_diagonal_(1.0)
    torch.testing.assert_close(torch.cov(blocks.T), expected, atol=0.02, rtol=0)  # 73,728 blocks: 3 sigma is 0.016


def test_coarsest_noise_stays_white():
    noise = draw((1, 16, 9, 96, 96), torch.Generator().manual_seed(3))
    coarse = coarsest(noise, 3)
    assert coarse.shape == (1, 16, 9, 24, 24)
    assert coarse.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(coarsest(noise, 1), noise)


@pytest.mark.oracle
def test_zero_star_scales_by_the_reference_s_fit():
    from diffusers.pipelines.helios.pipeline_helios_pyramid import optimized_scale

    g = torch.Generator().manual_seed(4)
    cond, uncond = (torch.randn(2, 16, 9, 4, 6, generator=g) for _ in range(2))
    fit = optimized_scale(cond.flatten(1), uncond.flatten(1)).view(2, 1, 1, 1, 1)
    expected = uncond * fit + 5.0 * (cond - uncond * fit)
    torch.testing.assert_close(zero_star(cond, uncond, 5.0), expected, atol=1e-5, rtol=0)


def test_guidance_of_one_is_the_conditional_flow():
    cond, uncond = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(classifier_free(cond, uncond, 1.0), cond)
