"""The preview decoder against frames of the reference implementation, with the same random weights.

`tests/golden/taehv.npy` has them, and its .json what made them. Float32 tolerance: both sum the same products in
another order through some thirty layers, which leaves differences of a few 1e-6 on values of order 1; 3e-5 is an order
of magnitude above that and two below any wrong frame, tap or edge.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from golden.make_taehv import FRAMES, latents
from helios_cli.architecture import TAEHVConfig
from helios_cli.model import causal
from helios_cli.model.causal import CausalState
from helios_cli.model.taehv import TAEHV
from helios_cli.model.vae import frames_to_uint8
from support.previews import random_weights

TOLERANCE = 3e-5
SMALL = TAEHVConfig(widths=(16, 12, 8, 8))


def network(config: TAEHVConfig | None = None, dtype: torch.dtype = torch.float32) -> TAEHV:
    with torch.device("meta"):  # as the loader does: nothing may depend on values made before the weights come
        ours = TAEHV(config)
    weights = {name: value.to(dtype) for name, value in random_weights(config).items()}
    ours.load_state_dict(weights, strict=True, assign=True)
    return ours.requires_grad_(False)


def decoded(ours: TAEHV, z: torch.Tensor, *states: CausalState) -> torch.Tensor:
    return torch.cat(list(ours.decode(z, *states)), dim=2)


def chunk(latents: int = 9, seed: int = 1, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.randn(1, 16, latents, height, width, generator=torch.Generator().manual_seed(seed))


def test_frames_are_those_of_the_reference():
    expected = torch.from_numpy(np.load(FRAMES)).movedim(2, 1) * 2 - 1
    frames = decoded(network(), latents())
    assert frames.shape == expected.shape == (1, 3, 33, 16, 24)
    inside = (expected.abs() < 1).float().mean()
    assert expected.std() > 0.1 and 0.3 < inside < 1  # a picture, of which some is beyond the range
    torch.testing.assert_close(frames, expected, atol=TOLERANCE, rtol=0)


def test_names_and_shapes_are_those_of_the_file():
    shapes = {name: tuple(value.shape) for name, value in TAEHV().state_dict().items()}
    assert shapes == TAEHVConfig().shapes()
    assert len(shapes) == 64  # as the reference has them, without its encoder
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.19.conv.weight"] == (128, 64, 1, 1)
    assert shapes["decoder.22.bias"] == (3,)


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 5], [1, 2, 6]], ids=str)
def test_a_clip_in_pieces_is_the_clip_at_once(pieces):
    ours, z, state = network(SMALL), chunk(), CausalState()
    whole = decoded(ours, z)
    parts = [decoded(ours, piece, state) for piece in z.split(pieces, dim=2)]
    assert [part.shape[2] for part in parts] == [4 * pieces[0] - 3, *(4 * count for count in pieces[1:])]
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=TOLERANCE, rtol=0)


def test_layers_that_split_their_work_make_the_same(monkeypatch):
    ours, z = network(SMALL), chunk()
    whole = list(ours.decode(z))
    monkeypatch.setitem(causal.PIECE_ELEMENTS, "cpu", 2**12)
    split = list(ours.decode(z))
    assert len(split) > len(whole)
    torch.testing.assert_close(torch.cat(split, dim=2), torch.cat(whole, dim=2), atol=TOLERANCE, rtol=0)


def test_a_frame_depends_on_earlier_latents_only():
    ours, z = network(SMALL), chunk()
    changed = z.clone()
    changed[:, :, 5:] += 1
    frames, others = decoded(ours, z), decoded(ours, changed)
    assert torch.equal(frames[:, :, :17], others[:, :, :17])
    assert not torch.equal(frames[:, :, 17], others[:, :, 17])


def test_bfloat16_keeps_the_pictures():
    """Weights and activations have 8 bits, frames come in float32: the pictures agree to about a level in 256."""
    exact, rounded = (
        frames_to_uint8(decoded(network(dtype=dtype), latents())).float() for dtype in (torch.float32, torch.bfloat16)
    )
    assert (exact - rounded).abs().mean() < 1.5


def test_values_that_are_not_finite_are_not_hidden():
    frames = decoded(network(SMALL), chunk().index_fill(2, torch.tensor([4]), float("nan")))
    assert torch.isfinite(frames[:, :, :13]).all() and torch.isnan(frames[:, :, 13]).any()
