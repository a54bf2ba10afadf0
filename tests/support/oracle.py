"""The oracle: random networks of diffusers, and the output of its pipelines for a checkpoint.

diffusers is imported where it is used: it takes seconds, and the tests that need it are marked `oracle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch

from support.checkpoints import DIT, TEXT
from support.renders import Case

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, HeliosTransformer3DModel
    from transformers import UMT5EncoderModel


@torch.no_grad()
def transformer(**config) -> HeliosTransformer3DModel:
    """Random, with norms and biases away from 1 and 0, and so scaled that prompt, history and anchor move the output.

    Freshly initialised models hardly react to any of them, and a test against one would see none of them.
    """
    from diffusers import HeliosTransformer3DModel

    made = HeliosTransformer3DModel(**{**DIT, **config}).eval()
    _shake(made, 0.1)
    for block in made.blocks:
        block.attn2.to_out[0].weight.mul_(12)
        block.attn1.to_out[0].weight.mul_(4)
    embedder = made.condition_embedder.text_embedder
    for layer in (embedder.linear_1, embedder.linear_2):
        layer.weight.mul_(6)
    made.proj_out.weight.mul_(4)
    return made


def text_encoder(vocabulary: int) -> UMT5EncoderModel:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", **TEXT)
    return _shake(UMT5EncoderModel(config).eval(), 0.1)


@torch.no_grad()
def _shake(module, deviation: float):
    for parameter in module.parameters():
        if parameter.squeeze().ndim <= 1:
            parameter.add_(torch.randn_like(parameter) * deviation)
    return module


def load(folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Load the checkpoint in `folder` with diffusers."""
    from diffusers import DiffusionPipeline

    made = DiffusionPipeline.from_pretrained(folder, dtype=dtype)
    made.set_progress_bar_config(disable=True)
    return made


def reference(case: Case, made: DiffusionPipeline, *, image=None, video=None) -> np.ndarray:
    """Return the frames that diffusers renders, uint8 [T, H, W, 3]."""
    return _levels(_run(case, made, image=image, video=video, output_type="np")[0])


def reference_latents(case: Case, made: DiffusionPipeline) -> torch.Tensor:
    """Return the latents that diffusers renders. The pipeline decodes them too, for nothing: here that is left out."""
    with mock.patch.object(made.vae, "decode", lambda latents, **how: [latents]):
        return _run(case, made, output_type="latent")


def reference_both(case: Case, made: DiffusionPipeline, **start) -> tuple[torch.Tensor, np.ndarray]:
    """Return the latents and the frames of one run."""
    decode, videos = made.vae.decode, []

    def noting(*latents, **how):
        decoded = decode(*latents, **how)
        videos.append(decoded[0])
        return decoded

    with mock.patch.object(made.vae, "decode", noting):
        latents = _run(case, made, output_type="latent", **start)
    return latents, _levels(made.video_processor.postprocess_video(torch.cat(videos, dim=2), output_type="np")[0])


def _levels(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().astype(np.uint8)


def _run(case: Case, made: DiffusionPipeline, *, output_type: str, image=None, video=None):
    settings = dict(num_inference_steps=case.steps[0])
    if case.kind != "base":
        settings = dict(
            pyramid_num_inference_steps_list=list(case.steps), is_amplify_first_chunk=case.kind == "distilled"
        )
    factor = mock.patch.object(torch.linalg, "cholesky", exact_block_noise_factor(torch.linalg.cholesky))
    with factor, quick_vae():
        return made(
            prompt=case.prompt,
            negative_prompt=case.negative,
            width=case.size[0],
            height=case.size[1],
            num_frames=33 * case.chunks,
            guidance_scale=case.guidance,
            generator=torch.Generator().manual_seed(case.seed),
            image=image,
            video=video,
            is_skip_first_chunk=case.reanchor,
            output_type=output_type,
            **settings,
        ).frames


@contextmanager
def quick_vae() -> Iterator[None]:
    """Run diffusers' VAE in float32 in a third of the time, with the same formulas.

    With one thread PyTorch convolves a single sample in three dimensions without oneDNN, and a norm over channels in
    front of the pixels takes it 80 ns for each value. `tests/model/test_vae.py` compares with the VAE as it is.
    """

    functional = torch.nn.functional
    plain = functional.conv3d

    def conv3d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        if x.dtype != torch.float32:  # which oneDNN has on few processors
            return plain(x, weight, bias, stride, padding, dilation, groups)
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)

    def normalize(x, p=2.0, dim=1, eps=1e-12):
        assert p == 2.0
        return x / x.square().sum(dim, keepdim=True).sqrt_().clamp_min_(eps)

    with mock.patch.object(functional, "conv3d", conv3d), mock.patch.object(functional, "normalize", normalize):
        yield


def exact_block_noise_factor(cholesky):
    """A stand-in for `torch.linalg.cholesky` inside the oracle.

    At gamma = 1/3 the covariance of the block noise is singular except for 1e-8, which float32 drops: diffusers' own
    factorisation has rounding error as its last pivot, and fails on CPUs where that is negative (seen on AMD EPYC).
    Here it is done in float64, where the matrix is what it is meant to be.
    """

    def factor(covariance: torch.Tensor) -> torch.Tensor:
        gamma = float(Fraction(-covariance[0, 1].item()).limit_denominator(1000))
        cells = len(covariance)
        ones = torch.ones(cells, cells, dtype=torch.float64)
        return cholesky((1 + gamma + 1e-8) * torch.eye(cells, dtype=torch.float64) - gamma * ones).to(covariance)

    return factor
