"""Operations against torch's own counter on our modules (on the meta device: nothing is computed), and as published."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.bench import specs
from helios_cli.cost import vae, work
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.umt5 import UMT5Config, UMT5Encoder
from helios_cli.model.vae import WanVAE
from helios_cli.units import grid_of
from support.meta_networks import SMALL, call, on_meta

SMALL_VAE = {**specs.VAE, "base_dim": 8, "dim_mult": [1, 2, 2, 4], "num_res_blocks": 1}
TERA = 1e12


def counted(act) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "size", "halvings", "prompt_tokens"),
    [
        pytest.param(SMALL, (128, 64), 0, 7, marks=pytest.mark.slow),
        pytest.param(SMALL, (192, 128), 2, 20, marks=pytest.mark.slow),
        pytest.param(SMALL, (208, 112), 0, 511, marks=pytest.mark.slow),  # odd grids: mid and long history are padded
        (SMALL | {"guidance_cross_attn": False}, (128, 128), 1, 1),
        ({"num_layers": 2}, (640, 384), 0, 120),
    ],
)
def test_the_transformer(config, size, halvings, prompt_tokens):
    shape = DiTConfig.from_json({**specs.TRANSFORMER, **config})
    dit = on_meta(lambda: HeliosDiT(shape))
    history = shape.history_tokens(size)
    noisy = 9 * math.prod(grid_of(size, shape.patch_size, halvings))
    text_rows = prompt_tokens + 1
    parts = call(dit, size, halvings, prompt_tokens)
    assert counted(parts["history"]) == work.history_flops(shape, history)
    assert parts["tokens"].shape[1] == history.total
    assert counted(parts["text"]) == work.context_flops(shape, text_rows)
    assert counted(parts["call"]) == work.call_flops(shape, history.total, noisy, text_rows).total
    reusing = parts["inputs"]()._replace(past=dit.empty_past())
    dit(*reusing)
    assert reusing.has_past
    reused = counted(lambda: dit(*reusing.without_history()))
    assert reused == work.call_flops(shape, 0, noisy, text_rows, past=history.total).total


@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
def test_the_text_encoder(size):
    config = {**specs.SMALL_TEXT_ENCODER, "num_heads": 4, "d_kv": 16, "d_ff": 96, "d_model": size[0]}
    encoder = on_meta(lambda: UMT5Encoder(UMT5Config.from_json(config)))
    row = torch.zeros(size[1], dtype=torch.long, device="meta")
    assert counted(lambda: encoder(row)) == work.text_flops(UMT5Config.from_json(config), size[1])


@pytest.mark.slow
@pytest.mark.parametrize(("config", "size"), [(SMALL_VAE, (64, 128)), (SMALL_VAE, (72, 40)), (specs.VAE, (640, 384))])
def test_the_vae(config, size):
    model = on_meta(lambda: WanVAE(VAEConfig.from_json(config)))
    shape = VAEConfig.from_json(config)
    latents = torch.empty(1, 16, 9, size[1] // 8, size[0] // 8, device="meta")
    assert counted(lambda: list(model.decode(latents))) == vae.decode_flops(shape, size)
    for frames in (1, 33):
        clip = torch.empty(1, 3, frames, size[1], size[0], device="meta")
        encoded = counted(lambda clip=clip: model.encode(clip, torch.Generator()))
        assert encoded == vae.encode_flops(shape, size, frames)


@pytest.mark.parametrize(("stage", "published"), [(0, 69.7), (1, 119.1), (2, 359.6)])
def test_a_call_of_the_published_model(stage, published):
    """Counted on the reference implementation at 640x384 with 512 rows of text, which makes the prompt's keys and
    values (2.15 TFLOP), embeds prompt and history (0.05) in every call, and takes history through the last block.
    """
    dit, size = DiTConfig(), (640, 384)
    history = dit.history_tokens(size)
    noisy = dit.noisy_tokens(size, 3)[stage]
    assert (history.long, history.mid, history.short) == (240, 240, 1920)
    assert noisy == (540, 2160, 8640)[stage]
    ours = work.call_flops(dit, history.total, noisy, 512).total
    once = work.context_flops(dit, 512) + work.history_flops(dit, history)
    M, S, E = history.total, history.total + noisy, dit.width
    skipped = M * (4 * E * E + 4 * E * dit.ffn_dim) + 4 * M * S * E
    assert (ours + once + skipped) / TERA == pytest.approx(published, abs=0.1)
    collapsed = work.call_flops(dit, history.total, noisy, 121).total
    assert collapsed < ours < published * TERA


def test_the_published_vae():
    """Counted as 69.3 TFLOP a chunk of 640x384, the first latent 2.66 and the others 8.33 each; encoding 41.2. Ours
    upsamples with folded kernels, which takes 16 products in place of 36."""
    shape, size = VAEConfig(), (640, 384)
    unfolded = 0
    for width, height, channels, frames in ((80, 48, 384, 17), (160, 96, 384, 33), (320, 192, 192, 33)):
        folded = 2 * frames * (height + 1) * (width + 1) * 16 * channels * channels // 2
        unfolded += 2 * frames * 4 * height * width * 9 * channels * channels // 2 - folded
    assert (vae.decode_flops(shape, size) + unfolded) / TERA == pytest.approx(69.3, abs=0.2)
    assert vae.decode_flops(shape, size) / TERA == pytest.approx(66.1, abs=0.1)
    assert vae.encode_flops(shape, size, 33) / TERA == pytest.approx(41.2, abs=0.1)
