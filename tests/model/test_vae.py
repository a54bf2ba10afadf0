"""The VAE against diffusers' AutoencoderKLWan, both with the same random parameters.

Float32 tolerance: the two sum the same products in another order through some thirty layers, which leaves differences
of a few 1e-6 on values of order 1; 3e-5 is an order of magnitude above that and two below any wrong frame, tap or edge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

from helios_cli.architecture import VAEConfig
from helios_cli.bench import specs
from helios_cli.model import causal
from helios_cli.model import vae as vae_module
from helios_cli.model.causal import CausalState
from helios_cli.model.channel_norm import normalize_fused, normalize_slabs
from helios_cli.model.vae import WanVAE, frames_to_uint8
from support.tiers import some

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

TOLERANCE = 3e-5

WAN = {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
CONFIGS = {
    "wan": WAN,
    "tiny": {**WAN, "dim_mult": [1, 2, 4, 8], "num_res_blocks": 1},
    "time-first": {**WAN, "dim_mult": [1, 1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [True, True, False]},
    "time-outer": {**WAN, "num_res_blocks": 1, "temperal_downsample": [True, False, True]},
}


def make_pair(**config) -> tuple[AutoencoderKLWan, WanVAE]:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    theirs = AutoencoderKLWan(z_dim=16, **config).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 1 or name.endswith("gamma"):  # initialised to 0 and 1, which hides mistakes
            parameter.data = torch.randn_like(parameter) * 0.2 + name.endswith("gamma")
    with torch.device("meta"):  # as the loader does: nothing may depend on values made before the weights come
        ours = WanVAE(VAEConfig.from_json(dict(theirs.config)))
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return theirs, ours


def make_ours(**config) -> WanVAE:
    """The same network with random parameters of its own."""
    torch.manual_seed(0)
    ours = WanVAE(VAEConfig.from_json({**specs.VAE, **config})).requires_grad_(False)
    for name, parameter in ours.named_parameters():
        if parameter.dim() == 1 or name.endswith("gamma"):
            parameter.data = torch.randn_like(parameter) * 0.2 + name.endswith("gamma")
    return ours


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def pair(request):
    return make_pair(**CONFIGS[request.param])


@pytest.fixture(scope="module")
def ours():
    return make_ours(**WAN)


def statistics(model: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = torch.tensor([model.config.latents_mean, model.config.latents_std])
    return mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)


@torch.no_grad()
def their_decode(model: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(model)
    return model.decode((latents * std + mean).to(model.dtype)).sample.float()


def our_decode(model: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(model.decode(latents)), dim=2).float()


def chunk(latents: int = 9, seed: int = 1, height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.randn(1, 16, latents, height, width, generator=torch.Generator().manual_seed(seed))


def clip(frames: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(1, 3, frames, 64, 96, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encode(model: WanVAE, frames: torch.Tensor, seed: int = 3) -> torch.Tensor:
    return model.encode(frames, torch.Generator().manual_seed(seed))


@pytest.mark.oracle
def test_parameters_are_the_checkpoints_own(pair):
    theirs, ours = pair
    shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.oracle
def test_decode_equals_diffusers(pair):
    theirs, ours = pair
    expected = their_decode(theirs, chunk(5))
    frames = our_decode(ours, chunk(5))
    assert frames.shape == (1, 3, 17, 64, 96)
    assert expected.std() > 0.1  # a picture, not a clamped or constant field
    torch.testing.assert_close(frames, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.oracle
def test_encode_samples_the_posterior_as_diffusers_does(pair):
    theirs, ours = pair
    mean, std = statistics(theirs)
    with torch.no_grad():
        sample = theirs.encode(clip(9)).latent_dist.sample(torch.Generator().manual_seed(3))
    latents = encode(ours, clip(9))
    assert latents.shape == (1, 16, 3, 8, 12)
    torch.testing.assert_close(latents, (sample - mean) / std, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(latents, encode(ours, clip(9), seed=4))


@pytest.mark.oracle
def test_batch_items_and_single_latents():
    theirs, ours = make_pair(**WAN)
    latents = torch.cat((chunk(1, seed=5), chunk(1, seed=6)))
    torch.testing.assert_close(our_decode(ours, latents), their_decode(theirs, latents), atol=TOLERANCE, rtol=0)
    latents = torch.cat((chunk(3, seed=5), chunk(3, seed=6)))
    torch.testing.assert_close(our_decode(ours, latents), their_decode(theirs, latents), atol=TOLERANCE, rtol=0)
    assert encode(ours, clip(1)).shape == (1, 16, 1, 8, 12)


@pytest.fixture(scope="module")
def whole(ours):
    return our_decode(ours, chunk()), encode(ours, clip(17))


# One latent makes four frames of 64x96 at 8 channels; the least budget cuts every layer's work into single frames.
@pytest.mark.parametrize("latents_in_a_piece", some(1, [4, 0, 1, 2, 8]))
def test_the_size_of_pieces_does_not_change_the_result(ours, whole, monkeypatch, latents_in_a_piece):
    budget = max(1, latents_in_a_piece * 4 * 64 * 96 * 8)
    monkeypatch.setattr(causal, "PIECE_ELEMENTS", {"cpu": budget})
    monkeypatch.setattr(ours, "piece_elements", None)
    pieces = list(ours.decode(chunk()))
    monkeypatch.setattr(causal, "PIECE_ELEMENTS", {"cpu": 2**23})
    monkeypatch.setattr(ours, "piece_elements", budget)
    assert all(map(torch.equal, pieces, ours.decode(chunk())))
    assert pieces[0].shape[2] == 1
    assert len(pieces) == 1 + 32 // max(1, 4 * latents_in_a_piece)
    frames, latents = whole
    torch.testing.assert_close(torch.cat(pieces, dim=2), frames, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(encode(ours, clip(17)), latents, atol=TOLERANCE, rtol=0)


def test_nothing_is_kept_for_frames_that_do_not_come(ours, monkeypatch):
    """Each layer keeps frames once for each of its pieces but the last."""
    kept: list[tuple[torch.nn.Module, bool]] = []

    class Noting(CausalState):
        def remember(self, layer, buffer_BTHWC, past=2):
            kept.append((layer, self.last))
            super().remember(layer, buffer_BTHWC, past)

    monkeypatch.setattr(ours, "piece_elements", 4 * 4 * 64 * 96 * 8)
    monkeypatch.setattr(vae_module, "CausalState", Noting)
    list(ours.decode(chunk(1)))
    assert kept and all(last for _, last in kept)
    kept.clear()
    list(ours.decode(chunk()))
    for layer in {layer for layer, _ in kept}:
        *before, end = [last for other, last in kept if other is layer]
        assert end and not any(before)
    assert len(kept) > len({layer for layer, _ in kept})


def test_weights_that_are_prepared_decode_the_same():
    """Twice, with other weights in between: what was made of the first ones is not taken for the second."""
    ours = make_ours(**WAN)
    for scale in (1.0, 2.0):
        with torch.no_grad():
            ours.decoder.up_blocks[0].upsamplers[0].resample["1"].weight.mul_(scale)
        expected = our_decode(ours, chunk(2))
        ours.prepare()
        assert torch.equal(our_decode(ours, chunk(2)), expected)
        ours.to(torch.float64).to(torch.float32)


def test_chunks_do_not_see_each_other(ours):
    alone = our_decode(ours, chunk(3, seed=8))
    interleaved = []
    for _, frames in zip(ours.decode(chunk(3, seed=7)), ours.decode(chunk(3, seed=8)), strict=True):
        interleaved.append(frames)
    assert torch.equal(torch.cat(interleaved, dim=2), alone)


@pytest.mark.oracle
def test_bfloat16_loses_no_more_than_diffusers():
    theirs, ours = make_pair(**WAN)
    exact = our_decode(ours, chunk(3))
    theirs.bfloat16(), ours.bfloat16()
    their_error = (their_decode(theirs, chunk(3)) - exact).abs().mean()
    our_error = (our_decode(ours, chunk(3)) - exact).abs().mean()
    assert 0 < our_error <= 2 * their_error

    # The noise is drawn in the model's dtype, where one seed gives other values than in float32.
    mean, std = statistics(theirs)
    with torch.no_grad():
        sample = theirs.encode(clip(5).bfloat16()).latent_dist.sample(torch.Generator().manual_seed(3)).float()
    latents = encode(ours, clip(5))
    assert latents.dtype == torch.float32
    difference = (latents - (sample - mean) / std).abs().mean()
    assert difference < 8 * torch.finfo(torch.bfloat16).eps  # rounding; another draw differs by about 0.5


def test_bytes_are_rounded_and_never_wrap():
    values = torch.tensor([-2.0, -1.01, -1.0, 0.0, 0.0039, 1.0, 1.01, 300.0])
    frames = values.view(1, 1, 1, 1, -1).expand(1, 3, 2, 1, -1)
    pixels = frames_to_uint8(frames)
    assert pixels.shape == (1, 2, 1, 8, 3) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert pixels[0, 0, 0, :, 0].tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("channels", [8, 96])
def test_both_norms_are_the_channel_length_norm(silu, channels):
    x, gamma = torch.randn(3, 700, channels), torch.randn(channels)
    x[1, 5] = 0
    expected = F.normalize(x, dim=-1) * channels**0.5 * gamma
    expected = F.silu(expected) if silu else expected
    fused, slabs = torch.empty_like(x), torch.empty_like(x)
    normalize_fused(x, fused, gamma, silu=silu)
    normalize_slabs(x.view(-1, channels), slabs.view(-1, channels), gamma, silu=silu)
    torch.testing.assert_close(fused, expected)
    torch.testing.assert_close(slabs, expected)


@pytest.mark.parametrize("shape", [(1, 3, 4, 64, 64), (1, 3, 5, 60, 64), (1, 3, 5, 64, 60)])
def test_encode_refuses_clips_off_the_grid(ours, shape):
    with pytest.raises(ValueError, match="cannot encode"):
        encode(ours, torch.zeros(shape))


JSON = {**WAN, "z_dim": 2, "latents_mean": [0.0, 0.1], "latents_std": [1.0, 2.0]}


def test_config_reads_upstreams_keys_and_ignores_the_neutral_ones():
    neutral = {"_class_name": "AutoencoderKLWan", "_x": 1, "dropout": 0.0, "attn_scales": [], "patch_size": None}
    neutral |= {"is_residual": False, "decoder_base_dim": None, "scale_factor_spatial": 8, "scale_factor_temporal": 4}
    config = VAEConfig.from_json(JSON | neutral)
    assert config == VAEConfig.from_json(JSON)
    assert config.temporal_downsample == (False, True, True)
    assert (config.in_channels, config.out_channels) == (3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_residual": True}, "is_residual` is True"),
        ({"patch_size": 2}, "patch_size` is 2"),
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"decoder_base_dim": 16}, "decoder_base_dim` is 16"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial` is 16"),
        ({"clip_output": False}, "unknown keys: clip_output"),
        ({"latents_std": [1.0]}, "latents_std` has 1"),
        ({"temperal_downsample": [True, True]}, "temperal_downsample` has 2 entries for 4 levels"),
        ({"dim_mult": [1, 2], "temperal_downsample": [True]}, "2 levels"),
        ({"temperal_downsample": [True, True, True]}, "4 frames"),
    ],
)
def test_config_refuses_another_model(change, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig.from_json(JSON | change)


def test_config_names_what_is_missing():
    with pytest.raises(ValueError, match="missing keys: base_dim"):
        VAEConfig.from_json({key: value for key, value in JSON.items() if key != "base_dim"})
