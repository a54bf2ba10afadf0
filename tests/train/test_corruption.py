"""The corruption of the history, against the formulas frame by frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from helios_cli.train.corruption import BLUR, EXPOSURE, NOISE, NONE, SATURATION, apply_damage, corrupt, draw_damage
from helios_cli.train.settings.flow import Corruption
from support.lessons import generators

ALL = Corruption(clean=0.0, noise=1, blur=1, exposure=1, saturation=1, none=1)
SHAPE = (16, 20, 8, 16)
FILLED = torch.ones(20, dtype=torch.bool)


def frames(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def by_hand(z: torch.Tensor, damage, t: int) -> torch.Tensor:
    """A frame [C, H, W] by the method's formula for its kind."""
    kind, sigma, factor = int(damage.kind[t]), damage.sigma[t], damage.factor[t]
    if kind == NOISE:
        return sigma * damage.noise[:, t] + (1 - sigma) * z
    if kind == BLUR:
        size = [max(1, round(side * damage.ratio[t].item())) for side in z.shape[1:]]
        small = F.interpolate(z[None], size=size, mode="bilinear", antialias=True)
        return F.interpolate(small, size=z.shape[1:], mode="bilinear", antialias=True)[0]
    if kind == EXPOSURE:
        return factor * z
    if kind == SATURATION:
        mean = z.mean(0)
        return torch.stack([(channel - mean) * factor + mean for channel in z])
    return z


def test_each_kind_is_its_formula():
    z = frames(6)
    damages = [draw_damage(ALL, SHAPE, FILLED, g) for g in generators(6)]
    found = apply_damage(z, damages)
    kinds = set()
    for b, damage in enumerate(damages):
        for t in range(SHAPE[1]):
            kinds.add(int(damage.kind[t]))
            torch.testing.assert_close(found[b, :, t], by_hand(z[b, :, t], damage, t), atol=2e-6, rtol=1e-5)
    assert kinds == {NONE, NOISE, BLUR, EXPOSURE, SATURATION}


def test_a_blur_is_a_blur():
    """Detail goes, the mean stays: at half the size a checkerboard is grey."""
    damage = draw_damage(ALL, SHAPE, FILLED, generators(1)[0])
    damage = replace(damage, kind=torch.full((20,), BLUR), ratio=torch.full((20,), 0.5))
    board = ((torch.arange(8)[:, None] + torch.arange(16)) % 2 * 2 - 1).float().expand(1, *SHAPE).contiguous()
    assert apply_damage(board, [damage]).abs().max() < 0.2
    torch.testing.assert_close(apply_damage(board + 3, [damage]).mean(), torch.tensor(3.0), atol=1e-5, rtol=0)


def test_ranges_and_shares():
    """The method's: of all frames a tenth clean, eight tenths noisy, a tenth blurred. Clean ones are whole pasts."""
    settings = Corruption()
    damages = [draw_damage(settings, SHAPE, FILLED, g) for g in generators(300)]
    kinds = torch.cat([damage.kind for damage in damages])
    damaged = torch.bincount(kinds, minlength=5) / len(kinds)
    shares = damaged * (1 - settings.clean)
    shares[NONE] += settings.clean
    expected = torch.tensor([0.1, 0.8, 0.1, 0, 0])
    # 6000 frames: a share deviates by at most 0.0052; 4.5 of that.
    torch.testing.assert_close(shares, expected, atol=0.0235, rtol=0)
    assert not shares[3:].any()
    for name, low, high in (("sigma", 0, 1 / 3), ("ratio", 0.9, 1)):
        values = torch.cat([getattr(damage, name) for damage in damages])
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    factor = torch.cat([damage.factor for damage in damages])
    assert ((factor >= 0.3) & (factor <= 0.999) | (factor >= 1.001) & (factor <= 1.7)).all()
    assert abs((factor < 1).float().mean() - 0.5) < 0.03


def test_the_anchor_keeps_its_exposure_and_colours():
    settings = Corruption(clean=0.0, noise=0, blur=0, exposure=1, saturation=1, none=0)
    z = frames(8)
    past, anchor = corrupt(z[:, :, :19], z[:, :, 19:], settings, generators(8))
    assert torch.equal(anchor, z[:, :, 19:])
    assert not (past == z[:, :, :19]).flatten(3).all(3).any()


def test_the_anchor_gets_noise_as_the_past_does():
    settings = Corruption(clean=0.0, noise=1, blur=0, none=0)
    z = frames(4)
    past, anchor = corrupt(z[:, :, :19], z[:, :, 19:], settings, generators(4))
    for b, g in enumerate(generators(4)):
        torch.rand((), generator=g)
        damage = draw_damage(settings, SHAPE, FILLED, g)
        for t, found in ((0, past[b, :, 0]), (19, anchor[b, :, 0])):
            torch.testing.assert_close(found, by_hand(z[b, :, t], damage, t), atol=1e-6, rtol=1e-5)


def test_empty_latents_stay_empty():
    z = frames(5)
    z[:, :, :10] = 0
    z[2] = 0
    for settings in (ALL, Corruption(clean=0.0, noise=1, blur=0, none=0)):
        past, anchor = corrupt(z[:, :, :19], z[:, :, 19:], settings, generators(5))
        assert not past[:, :, :10].any()
        assert not past[2].any() and not anchor[2].any()
        assert past[0, :, 10:].any()


def test_clean_pasts():
    """All of them if corruption is off, else as many as asked for."""
    z = frames(1).expand(200, *SHAPE)
    past, anchor = corrupt(z[:, :, :19], z[:, :, 19:], Corruption(clean=1.0), generators(200))
    assert torch.equal(past, z[:, :, :19]) and torch.equal(anchor, z[:, :, 19:])
    past, _ = corrupt(z[:, :, :19], z[:, :, 19:], Corruption(clean=0.3, none=0, blur=0), generators(200))
    clean = (past == z[:, :, :19]).flatten(1).all(1).float().mean()
    assert abs(clean - 0.3) < 4.5 * (0.3 * 0.7 / 200) ** 0.5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"noise": 0, "blur": 0, "none": 0}, "clean = 1"),
        ({"sigma": (0.5, 0.1)}, "low to high"),
        ({"sigma": (0.0, 1.5)}, "at most 1"),
        ({"ratio": (0.0, 1.0)}, "above 0"),
    ],
)
def test_impossible_settings_are_refused(values, said):
    with pytest.raises(ValidationError, match=said):
        Corruption(**values)
