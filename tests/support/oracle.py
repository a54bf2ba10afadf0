"""diffusers as the oracle: random Helios checkpoints of every kind, and what its pipelines make of them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = "a the red green blue circle square ball moves left right up down over background slowly and"

DIT = dict(
    num_attention_heads=2,
    attention_head_dim=16,
    text_dim=32,
    freq_dim=32,
    ffn_dim=64,
    num_layers=2,
    rope_dim=(4, 6, 6),
)
VAE = dict(base_dim=4, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True])
TEXT = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer with T5's special tokens."""
    vocabulary = ["<pad>", "</s>", "<unk>", *dict.fromkeys([*WORDS.split(), *"abcdefghijklmnopqrstuvwxyz.,"])]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


@torch.no_grad()
def transformer(**config) -> HeliosTransformer3DModel:
    """Random, with norms and biases away from 1 and 0, and so scaled that prompt, history and anchor move the output.

    Freshly initialised models hardly react to any of them, and a test against one would see none of them.
    """
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


def vae(**config) -> AutoencoderKLWan:
    return _shake(AutoencoderKLWan(**{**VAE, **config}).eval(), 0.05)


def text_encoder(vocabulary: int) -> UMT5EncoderModel:
    return _shake(UMT5EncoderModel(UMT5Config(vocab_size=vocabulary, **TEXT)).eval(), 0.1)


@torch.no_grad()
def _shake(module, deviation: float):
    for parameter in module.parameters():
        if parameter.squeeze().ndim <= 1:
            parameter.add_(torch.randn_like(parameter) * deviation)
    return module


def pipeline(kind: str, *, solver: str = "unipc", seed: int = 0, **dit_config):
    """A diffusers pipeline of `kind` with random weights."""
    torch.manual_seed(seed)
    words = tokenizer()
    parts = dict(
        tokenizer=words,
        text_encoder=text_encoder(len(words)),
        transformer=transformer(**dit_config),
        vae=vae(),
    )
    if kind == "base":
        scheduler = HeliosScheduler(
            stages=1,
            stage_range=[0, 1],
            use_dynamic_shifting=True,
            time_shift_type="exponential",
            scheduler_type=solver,
        )
        made = HeliosPipeline(scheduler=scheduler, **parts)
    elif kind == "mid":
        scheduler = HeliosScheduler(use_dynamic_shifting=True, time_shift_type="exponential", scheduler_type=solver)
        made = HeliosPyramidPipeline(scheduler=scheduler, is_cfg_zero_star=True, is_distilled=False, **parts)
    else:
        scheduler = HeliosDMDScheduler(use_dynamic_shifting=True, time_shift_type="linear")
        made = HeliosPyramidPipeline(scheduler=scheduler, is_cfg_zero_star=False, is_distilled=True, **parts)
    made.set_progress_bar_config(disable=True)
    return made


@dataclass(frozen=True)
class Case:
    """What is rendered on both sides. `size` is (width, height)."""

    kind: str
    size: tuple[int, int]
    steps: tuple[int, ...]
    chunks: int = 4
    prompt: str = "a red circle moves left over the blue background"
    negative: str = "green square"
    seed: int = 7
    image: Path | None = None
    video: Path | None = None
    reanchor: bool = False

    @property
    def guidance(self) -> float:
        return 1.0 if self.kind == "distilled" else 5.0


def reference(case: Case, made, *, image=None, video=None, output_type: str = "np") -> np.ndarray | torch.Tensor:
    """What diffusers renders: frames [T, H, W, 3] in 0..255, or latents."""
    settings = dict(num_inference_steps=case.steps[0])
    if case.kind != "base":
        settings = dict(
            pyramid_num_inference_steps_list=list(case.steps), is_amplify_first_chunk=case.kind == "distilled"
        )
    with mock.patch.object(torch.linalg, "cholesky", exact_block_noise_factor(torch.linalg.cholesky)):
        result = made(
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
    return result if output_type == "latent" else (result[0] * 255).round().astype(np.uint8)


def exact_block_noise_factor(cholesky):
    """A stand-in for `torch.linalg.cholesky` inside the oracle.

    At gamma = 1/3 the covariance of the block noise is singular but for 1e-8, which float32 drops: diffusers' own
    factorisation has rounding error as its last pivot, and fails on CPUs where that is negative (seen on AMD EPYC).
    Here it is done in float64, where the matrix is what it is meant to be.
    """

    def factor(covariance: torch.Tensor) -> torch.Tensor:
        gamma = float(Fraction(-covariance[0, 1].item()).limit_denominator(1000))
        cells = len(covariance)
        ones = torch.ones(cells, cells, dtype=torch.float64)
        return cholesky((1 + gamma + 1e-8) * torch.eye(cells, dtype=torch.float64) - gamma * ones).to(covariance)

    return factor
