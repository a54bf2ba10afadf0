"""A phase's gradients against the slope of its loss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helios_cli.train.phase import Phase, Share


def assert_slope(phase: Phase, player: str, share: Share, loss_of: Callable[[dict], float], by: float = 2e-3) -> None:
    """Finite differences along one direction through all parameters, that of the gradient itself.

    `loss_of` the turn's losses is what `backward` takes the gradient of. float32: two decimals of six are left after
    the difference.
    """
    module = phase.players[player]
    module.zero_grad()
    phase.backward(player, share)
    params = [p for p in module.parameters() if p.grad is not None]
    norm = torch.cat([p.grad.flatten() for p in params]).norm()
    assert norm > 0
    direction = [p.grad / norm for p in params]

    def loss(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(params, direction, strict=True):
                p.add_(d, alpha=step)
        losses = {name: value.item() for name, value in phase.backward(player, share).items()}
        with torch.no_grad():
            for p, d in zip(params, direction, strict=True):
                p.sub_(d, alpha=step)
        return loss_of(losses)

    assert norm.item() == pytest.approx((loss(by) - loss(-by)) / (2 * by), rel=0.02)
