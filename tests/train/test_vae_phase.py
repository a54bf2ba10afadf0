"""The VAE's training: its differentiable path against diffusers and finite differences, its losses against their
formulas, and what it writes against what inference reads."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.distributions import Normal, kl_divergence

from helios_cli.architecture import VAEConfig
from helios_cli.bench.specs import SPECS, VAE
from helios_cli.bench.synthetic import write_checkpoint
from helios_cli.model.channel_norm import DifferentiableNorm
from helios_cli.model.convolution import Interleave
from helios_cli.model.vae import WanVAE
from helios_cli.train.phase import Share
from helios_cli.train.phases.vae import Passes, averaged, build, detail_weights, initialise, losses, psnr, total
from helios_cli.train.settings.encoders import VAEData, VAELatents, VAELoss, VAESettings
from helios_cli.weights.checkpoint import Checkpoint
from support.tiers import some

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

# As in tests/model/test_vae.py: another order of the same sums makes some 1e-6 on values of order 1.
TOLERANCE = 3e-5

SMALL = {"base_dim": 2, "dim_mult": [1, 2, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
# Norms of two channels blow rounding up; these are compared with others' arithmetic.
COMPARED = {**SMALL, "base_dim": 8}
TIME_FIRST = {**COMPARED, "temperal_downsample": [True, True, False]}


def spread(module: torch.nn.Module) -> None:
    """Values that biases and gammas do not begin with, which hides mistakes."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1 or name.endswith("gamma"):
            parameter.data = torch.randn_like(parameter) * 0.2 + name.endswith("gamma")


def make_pair(**config) -> tuple[AutoencoderKLWan, WanVAE]:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    theirs = AutoencoderKLWan(z_dim=16, **config)
    spread(theirs)
    ours = WanVAE(VAEConfig.from_json(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_ours(**config) -> WanVAE:
    torch.manual_seed(0)
    ours = WanVAE(VAEConfig.from_json({**VAE, **config}))
    spread(ours)
    return ours


def clip(frames: int = 9, height: int = 32, width: int = 32, seed: int = 2) -> torch.Tensor:
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.oracle
@pytest.mark.parametrize("config", [COMPARED, TIME_FIRST], ids=["wan", "time first"])
@pytest.mark.parametrize("frames", [1, 9])
def test_a_whole_clip_passes_as_in_diffusers_and_so_do_its_gradients(config, frames):
    theirs, ours = make_pair(**config)
    x = clip(frames)
    expected, found = theirs.encode(x).latent_dist, ours.posterior(x)
    torch.testing.assert_close(found[0], expected.mean, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(found[1], expected.logvar, atol=TOLERANCE, rtol=0)
    pictures, decoded = ours.reconstruct(found[0]), theirs.decode(expected.mean).sample
    torch.testing.assert_close(pictures.clamp(-1, 1), decoded, atol=TOLERANCE, rtol=0)

    ((decoded - x).square().mean() + expected.logvar.mean()).backward()
    ((pictures.clamp(-1, 1) - x).square().mean() + found[1].mean()).backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(wanted) > 100 * (frames > 1)
    ours_by_name = dict(ours.named_parameters())
    for name, gradient in wanted.items():
        error = (ours_by_name[name].grad - gradient).abs().max()
        assert error <= 1e-3 * gradient.abs().max() + 1e-7, name


def test_the_path_of_training_is_that_of_rendering():
    ours = make_ours(**COMPARED)
    mean, std = ours._statistics(torch.device("cpu"))
    x = clip()[:1]
    with torch.no_grad():
        latents, logvar = ours.posterior(x)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
        sample = latents + (logvar / 2).exp() * noise
        normalised = (sample - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1)
        pictures = ours.reconstruct(sample).clamp(-1, 1)
    encoded = ours.encode(x, torch.Generator().manual_seed(3))
    torch.testing.assert_close(encoded, normalised, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(torch.cat(list(ours.decode(encoded)), dim=2), pictures, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("channels", some(1, [3, 40]))
def test_the_norms_gradient_by_finite_differences(silu, channels):
    x = torch.randn(2, 2, 1, 2, channels, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(channels, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, gamma: DifferentiableNorm.apply(x, gamma, 2, silu), (x, gamma))


def test_the_norm_of_nothing_has_a_gradient():
    x = torch.zeros(1, 1, 1, 1, 8, requires_grad=True)
    DifferentiableNorm.apply(x, torch.ones(8), 0, True).sum().backward()
    assert x.grad.isfinite().all()


def test_the_interleavings_gradient_by_finite_differences():
    y = torch.randn(2, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Interleave.apply, (y,))


@pytest.fixture
def small(monkeypatch):
    """A new VAE is of this size."""
    spec = dataclasses.replace(SPECS["tiny"], vae={**SPECS["tiny"].vae, **SMALL})
    monkeypatch.setitem(SPECS, "tiny", spec)
    return spec


def settings(**changes) -> VAESettings:
    values = {
        "phase": "vae",
        "out": "unused",
        "steps": 1,
        "batch": 2,
        "dtype": "float32",
        "latents": VAELatents(clips=3),
    }
    return VAESettings(**{**values, "data": VAEData(pieces=((5, 32, 32),)), **changes})


def make_phase(**changes):
    return build(settings(**changes), None, torch.device("cpu"))


def gradients(phase, samples: range, batch: int = 2, step: int = 0) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    vae = phase.players["vae"]
    vae.zero_grad()
    found = phase.backward("vae", Share(step, samples, batch, seed=7))
    return {name: loss.item() for name, loss in found.items()}, {n: p.grad.clone() for n, p in vae.named_parameters()}


@pytest.mark.train
def test_a_batch_is_the_sum_of_its_shares(small):
    phase = make_phase()
    all_losses, whole = gradients(phase, range(2))
    first, second = gradients(phase, range(1)), gradients(phase, range(1, 2))
    assert all_losses == pytest.approx({name: first[0][name] + second[0][name] for name in all_losses}, rel=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(first[1][name] + second[1][name], gradient, atol=1e-6, rtol=1e-4)
    assert gradients(phase, range(2))[0] == all_losses  # nothing but the share is drawn from
    assert gradients(phase, range(2), step=1)[0] != all_losses


@pytest.mark.oracle
def test_the_gradient_of_the_whole_loss_by_finite_differences():
    vae = make_pair(**COMPARED)[1].double()
    passes = Passes(vae)
    frames, noise = clip(5).double(), torch.randn(2, 2, 16, 2, 4, 4, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return total(losses(passes(frames, noise, 0.2, 2), frames, 2, VAELoss(kl=0.1)), VAELoss(kl=0.1))

    loss().backward()
    step = 1e-6
    for name in (
        "encoder.conv_in.weight",
        "encoder.mid_block.attentions.0.to_qkv.weight",
        "encoder.down_blocks.3.time_conv.weight",
        "quant_conv.bias",
        "decoder.up_blocks.0.upsamplers.0.resample.1.weight",
        "decoder.up_blocks.1.upsamplers.0.time_conv.weight",
        "decoder.norm_out.gamma",
    ):
        parameter = vae.get_parameter(name)
        direction = torch.randn_like(parameter)
        # Inference takes the attention's norm in float32, so the losses are taken as in training.
        parameter.data += step * direction
        above = loss().item()
        parameter.data -= 2 * step * direction
        below = loss().item()
        parameter.data += step * direction
        assert (above - below) / (2 * step) == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-4)


def test_losses_are_their_formulas():
    made = {
        "frames": clip(5, seed=3).double(),
        "pooled": clip(5, 8, 8, seed=4).double(),
        "mean": torch.randn(2, 16, 2, 4, 4, dtype=torch.float64),
        "logvar": torch.randn(2, 16, 2, 4, 4, dtype=torch.float64),
    }
    frames = clip(5, seed=5).double()
    found = {name: loss.item() for name, loss in losses(made, frames, 4, VAELoss(detail=0.0, squares=2.0)).items()}
    difference = (made["frames"] - frames).numpy()
    coarse = (made["pooled"] - averaged(frames, 4)).numpy()
    posterior = Normal(made["mean"], (made["logvar"] / 2).exp())
    assert found == pytest.approx(
        {
            "l1": np.abs(difference).mean(),
            "squares": (difference**2).mean(),
            "edges": np.abs(np.diff(difference, axis=-1)).mean() + np.abs(np.diff(difference, axis=-2)).mean(),
            "kl": kl_divergence(posterior, Normal(torch.zeros(()).double(), torch.ones(()).double())).mean().item(),
            "pooled": np.abs(coarse).mean() + 2 * (coarse**2).mean(),
        }
    )
    numpy_means = frames.numpy().reshape(2, 3, 5, 8, 4, 8, 4).mean((4, 6))
    np.testing.assert_allclose(averaged(frames, 4).numpy(), numpy_means, atol=1e-12)
    weights = VAELoss(squares=3.0, edges=5.0, kl=7.0, pooled=11.0)
    expected = found["l1"] + 3 * found["squares"] + 5 * found["edges"] + 7 * found["kl"] + 11 * found["pooled"]
    parts = {name: torch.tensor(value) for name, value in found.items()}
    assert total(parts, weights).item() == pytest.approx(expected)


def test_details_count_more_and_all_pixels_together_the_same():
    frames = torch.zeros(1, 3, 1, 32, 32)
    frames[:, 1, :, 12:20, 12:20] = 0.5
    weights = detail_weights(frames, 2.0)[0, 0, 0]
    assert weights.mean().item() == pytest.approx(1)
    assert weights[12, 12] == pytest.approx(3 * weights[0, 0].item())
    assert weights[12, 19] == weights[12, 12] == weights[9, 9]  # three pixels around the edge
    assert weights[12, 25] == weights[7, 12] == weights[0, 0]
    assert torch.equal(detail_weights(torch.zeros(1, 3, 1, 32, 32), 2.0), torch.ones(1, 1, 1, 32, 32))


def test_psnr_is_skimages_definition():
    made, wanted = clip(5, seed=3), clip(5, seed=4)
    mse = ((made[0] - wanted[0]).double() ** 2).mean().item()
    assert psnr(made, wanted)[0].item() == pytest.approx(20 * np.log10(2) - 10 * np.log10(mse))


def test_a_new_vae_hands_colours_on_where_it_resamples(small):
    torch.manual_seed(0)
    vae = initialise(WanVAE(VAEConfig.from_json(small.vae)))
    x = torch.randn(1, 5, 1, 1, 4).expand(1, 5, 8, 8, 4)
    with torch.no_grad():
        down = vae.encoder.down_blocks[5]
        assert down.time_conv is not None
        # Of each two frames behind the first, the second of them or the first: time stands still at neither end.
        small_x = down(x, None)
        assert small_x.shape == (1, 3, 4, 4, 4)
        up = vae.decoder.up_blocks[0].upsamplers[0]
        large = up(torch.randn(1, 3, 1, 1, 8).expand(1, 3, 4, 4, 8), None)
        assert large.shape == (1, 5, 8, 8, 4)
    torch.testing.assert_close(small_x[:, 0], x[:, 0, :4, :4])


@pytest.mark.train
def test_it_learns(small):
    phase = make_phase(batch=1)
    vae = phase.players["vae"]
    mover = torch.optim.Adam(vae.parameters(), lr=3e-3)
    history = []
    for _ in range(20):
        mover.zero_grad()
        found = phase.backward("vae", Share(0, range(1), 1, seed=0))
        history.append(found["l1"].item())
        mover.step()
    assert history[-1] < 0.8 * history[0]


@pytest.mark.oracle
def test_what_is_saved_is_read_by_others_and_its_latents_have_the_deviation_asked_for(small, tmp_path):
    from diffusers import AutoencoderKLWan

    folder = write_checkpoint(tmp_path / "checkpoint", small)
    phase = make_phase(latents=VAELatents(clips=4, deviation=2.0))
    phase.save(folder)
    saved = AutoencoderKLWan.from_pretrained(folder / "vae")
    for name, parameter in phase.players["vae"].named_parameters():
        assert torch.equal(saved.get_parameter(name), parameter)

    vae = WanVAE(VAEConfig.from_json(json.loads((folder / "vae/config.json").read_text())))
    vae.load_state_dict(saved.state_dict())
    generator = torch.Generator().manual_seed(0)
    latents = torch.cat([vae.encode(phase._clip(seed, "train"), generator) for seed in range(4)])
    dims = (0, 2, 3, 4)
    # Four digits are written, and the posterior's noise is drawn once.
    torch.testing.assert_close(latents.mean(dims), torch.zeros(16), atol=0.1, rtol=0)
    torch.testing.assert_close(latents.std(dims), torch.full((16,), 2.0), atol=0, rtol=0.05)


@pytest.mark.oracle
def test_it_goes_on_with_the_vae_it_starts_from_unless_told_otherwise(small, tmp_path):
    from diffusers import AutoencoderKLWan

    start = Checkpoint.open(write_checkpoint(tmp_path, small))
    stored = AutoencoderKLWan.from_pretrained(tmp_path / "vae").get_parameter("decoder.conv_in.weight")
    for fresh in (False, True):
        vae = build(settings(fresh=fresh), start, torch.device("cpu")).players["vae"]
        assert torch.equal(vae.decoder.conv_in.weight, stored) != fresh
        assert all(parameter.requires_grad for parameter in vae.parameters())


def test_the_decoder_alone_keeps_the_encoder_and_the_statistics(small, tmp_path):
    folder = write_checkpoint(tmp_path, small)
    written = (folder / "vae/config.json").read_bytes()
    phase = build(settings(part="decoder"), Checkpoint.open(folder), torch.device("cpu"))
    vae = phase.players["vae"]
    phase.backward("vae", Share(0, range(1), 1, seed=0))
    moved = {name for name, parameter in vae.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in vae.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))}
    phase.save(folder)
    assert json.loads((folder / "vae/config.json").read_bytes()) == json.loads(written)


@pytest.mark.slow
def test_what_is_looked_at(small, tmp_path, monkeypatch):
    monkeypatch.setattr("helios_cli.train.phases.vae.PROBED", 2)
    phase = make_phase(dtype="bfloat16")
    figures = phase.probe(Share(0, range(2), 2, seed=0))
    assert 0 < figures["psnr_worst"] <= figures["psnr"] < 40
    half = phase.probe(Share(0, range(1), 2, seed=0))
    assert half == pytest.approx({name: value / 2 for name, value in figures.items()})  # the processes' are added up
    phase.samples(tmp_path / "sheet.png", 0)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 128 * 2, 8 * 64 * 2)


@pytest.mark.parametrize("piece", [(6, 64, 64), (5, 48, 64), (0, 64, 64), (5, 96, 64), (5, 64, 160)])
def test_pieces_off_the_grid_are_refused(piece):
    with pytest.raises(ValidationError, match=r"pieces"):
        VAEData(pieces=(piece,))
